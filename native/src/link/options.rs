//! The bounds of a hub, checked once: every complaint names the option.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Options {
    /// One frame, from us or to us.
    pub frame_bytes_max: usize,
    /// Taken and not yet written, by link.
    pub unsent_bytes_max: usize,
    /// Read and not yet polled, by link: beyond it nothing more is read.
    pub unread_bytes_max: usize,
    pub connections_max: usize,
    /// For the peer's HELLO, and again for the answer to it.
    pub hello_timeout: Duration,
    /// A peer that says nothing for this long is asked whether it is there …
    pub keepalive: Duration,
    /// … and given up this much later. The bound for a link's last words, too.
    pub keepalive_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            frame_bytes_max: 64 << 20,
            unsent_bytes_max: 64 << 20,
            unread_bytes_max: 32 << 20,
            connections_max: 1024,
            hello_timeout: Duration::from_secs(5),
            keepalive: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(5),
        }
    }
}

impl Options {
    pub fn check(&self) -> Result<(), String> {
        let ms = |duration: Duration| duration.as_millis() as usize;
        let bounds: [(&str, usize, usize, usize); 7] = [
            ("frame_bytes_max", self.frame_bytes_max, 1, 1 << 30),
            ("unsent_bytes_max", self.unsent_bytes_max, 1, 1 << 40),
            ("unread_bytes_max", self.unread_bytes_max, 1, 1 << 40),
            ("connections_max", self.connections_max, 1, 1 << 20),
            ("hello_timeout_ms", ms(self.hello_timeout), 1, 600_000),
            ("keepalive_ms", ms(self.keepalive), 1, 3_600_000),
            ("keepalive_timeout_ms", ms(self.keepalive_timeout), 1, 3_600_000),
        ];
        for (name, value, low, high) in bounds {
            if value < low || value > high {
                return Err(format!("{name} is {value}, it must be in {low}..={high}"));
            }
        }
        Ok(())
    }

    /// Nothing read from a peer, or nothing taken by it, for this long: it is as good as dead.
    pub fn silence_max(&self) -> Duration {
        self.keepalive + self.keepalive_timeout
    }
}
