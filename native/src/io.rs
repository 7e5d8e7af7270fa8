//! The one I/O thread of a process: a current-thread tokio runtime that the gRPC server and the links share.
//!
//! One thread is best on the few cores a node has, and it makes batches: everything that became ready in one turn
//! of the runtime is handed to Python in one piece. Nothing here blocks: long computations (compression of big
//! messages) go to the runtime's blocking pool. The thread lives as long as the process; what runs on it is ended
//! by its owner. After a fork the child has no such thread and must not use this module.

use std::sync::OnceLock;
use tokio::runtime::{Builder, Handle};

static HANDLE: OnceLock<Handle> = OnceLock::new();

/// The runtime of this process, started by the first caller. Panics if the thread cannot be had: a process without
/// it can serve nothing.
pub fn handle() -> &'static Handle {
    HANDLE.get_or_init(|| {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .thread_name("flotta-io-work")
            .build()
            .expect("the I/O runtime can be made");
        let handle = runtime.handle().clone();
        std::thread::Builder::new()
            .name("flotta-io".to_owned())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))
            .expect("the I/O thread can be started");
        handle
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn work_runs_on_the_one_thread() {
        let (sender, receiver) = std::sync::mpsc::channel();
        for _ in 0..2 {
            let sender = sender.clone();
            super::handle()
                .spawn(async move { sender.send(std::thread::current().name().map(str::to_owned)) });
        }
        let names: Vec<_> = receiver.iter().take(2).collect();
        assert_eq!(names, vec![Some("flotta-io".to_owned()); 2]);
    }
}
