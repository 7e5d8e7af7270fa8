//! All calls of a server, each in a slot with a waker of its own, and their timers.
//!
//! A call's id is its slot and a generation that is never used twice within 2^32 calls, so whoever names a call that
//! is over names nobody. A timer goes with its call.

use super::call::{Call, Next};
use super::server::Server;
use slab::Slab;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Instant;
use tokio::sync::Notify;

/// Slots whose streams have news. Wakes the server's pump.
#[derive(Default)]
pub struct Ready {
    slots: Mutex<Vec<u32>>,
    pub pump: Notify,
}

impl Ready {
    pub fn take(&self) -> Vec<u32> {
        std::mem::take(&mut *self.slots.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct SlotWaker {
    slot: u32,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, SeqCst) {
            self.ready.slots.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
            self.ready.pump.notify_one();
        }
    }
}

pub struct Calls {
    slots: Slab<Slot>,
    /// By slot; kept when its call is over, for the next one.
    wakers: Vec<(Arc<SlotWaker>, Waker)>,
    timers: BTreeSet<(Instant, u32)>,
    generation: u32,
    ready: Arc<Ready>,
}

struct Slot {
    call: Call,
    /// As it stands in `timers`.
    timer: Option<Instant>,
}

impl Calls {
    pub fn new(ready: Arc<Ready>) -> Calls {
        Calls { slots: Slab::new(), wakers: Vec::new(), timers: BTreeSet::new(), generation: 0, ready }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Deadlines being waited for.
    pub fn timers(&self) -> usize {
        self.timers.len()
    }

    /// Take a call in and move it as far as it goes.
    pub fn insert(&mut self, mut call: Call, server: &Server) {
        self.generation = self.generation.wrapping_add(1).max(1);
        let entry = self.slots.vacant_entry();
        let slot = entry.key() as u32;
        call.id = u64::from(self.generation) << 32 | u64::from(slot);
        if let Some(meter) = call.meter() {
            server.add_meter(call.id, meter.clone());
            call.show_stream(server);
        }
        entry.insert(Slot { call, timer: None });
        if self.wakers.len() <= slot as usize {
            let waker =
                Arc::new(SlotWaker { slot, queued: AtomicBool::new(false), ready: self.ready.clone() });
            self.wakers.push((waker.clone(), waker.into()));
        }
        self.drive(slot, server);
    }

    fn slot_of(&self, id: u64) -> Option<u32> {
        let slot = id as u32;
        self.slots.get(slot as usize).filter(|held| held.call.id == id).map(|_| slot)
    }

    /// Do something to a call, if it is there, and move it on.
    pub fn with(&mut self, id: u64, server: &Server, act: impl FnOnce(&mut Call)) {
        if let Some(slot) = self.slot_of(id) {
            act(&mut self.slots[slot as usize].call);
            self.drive(slot, server);
        }
    }

    fn drive(&mut self, slot: u32, server: &Server) {
        let Some(held) = self.slots.get_mut(slot as usize) else { return };
        let mut context = Context::from_waker(&self.wakers[slot as usize].1);
        let next = held.call.drive(&mut context, server);
        self.after(slot, next, server);
    }

    fn after(&mut self, slot: u32, next: Next, server: &Server) {
        let held = &mut self.slots[slot as usize];
        let timer = if next == Next::Over { None } else { held.call.timer };
        if timer != held.timer {
            if let Some(old) = held.timer.take() {
                self.timers.remove(&(old, slot));
            }
            if let Some(new) = timer {
                self.timers.insert((new, slot));
            }
            held.timer = timer;
        }
        if next == Next::Over {
            self.slots.remove(slot as usize).call.close(server);
        }
    }

    /// Calls whose streams have news.
    pub fn drive_ready(&mut self, server: &Server) {
        for slot in self.ready.take() {
            self.wakers[slot as usize].0.queued.store(false, SeqCst);
            self.drive(slot, server);
        }
    }

    /// Let due timers ring; when the next one is due.
    pub fn ring(&mut self, now: Instant, server: &Server) -> Option<Instant> {
        while let Some((due, slot)) = self.timers.first().copied() {
            if due > now {
                return Some(due);
            }
            let next = self.slots[slot as usize].call.ring(server);
            self.after(slot, next, server);
            self.drive(slot, server);
        }
        None
    }

    /// Give up what stands still.
    pub fn check_stalls(&mut self, now: Instant, server: &Server) {
        for slot in 0..self.wakers.len() as u32 {
            let Some(held) = self.slots.get_mut(slot as usize) else { continue };
            if let Some(next) = held.call.check_stall(server, now) {
                self.after(slot, next, server);
                self.drive(slot, server);
            }
        }
    }
}
