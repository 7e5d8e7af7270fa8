//! An eventfd: how a thread of the crate makes Python's event loop look.
//!
//! Readable from the first `notify` until `clear`, however often it was notified between the two.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

pub struct EventFd(OwnedFd);

impl EventFd {
    pub fn new() -> io::Result<EventFd> {
        // SAFETY: a plain system call; the descriptor it returns is owned from here on.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(EventFd(OwnedFd::from_raw_fd(fd)))
        }
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub fn notify(&self) {
        let one = 1u64;
        // SAFETY: writes eight bytes of a live local to a descriptor this struct owns. It can only fail when the
        // counter is full, and then it is readable anyway.
        unsafe { libc::write(self.fd(), std::ptr::from_ref(&one).cast(), 8) };
    }

    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: reads eight bytes into a live local from a non-blocking descriptor this struct owns.
        unsafe { libc::read(self.fd(), std::ptr::from_mut(&mut count).cast(), 8) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(event: &EventFd) -> bool {
        let mut poll = libc::pollfd { fd: event.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live local, no waiting.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    #[test]
    fn readable_from_the_first_notify_until_cleared() {
        let event = EventFd::new().unwrap();
        assert!(!readable(&event));
        event.notify();
        event.notify();
        assert!(readable(&event));
        event.clear();
        event.clear();
        assert!(!readable(&event));
    }
}
