//! What waits for its turn, in lanes: each lane passes a little, then the next one does.
//!
//! However much waits in one lane, the first of another passes after at most one turn of every lane. A lane may be
//! held up by whoever takes; what is in it keeps its order.

use std::collections::{HashMap, VecDeque};

const TURN_ITEMS: usize = 8;
/// The item that goes beyond still passes.
const TURN_BYTES: usize = 64 << 10;

struct Waiting<T> {
    item: T,
    bytes: usize,
}

pub struct Fair<T> {
    lanes: HashMap<u64, VecDeque<Waiting<T>>>,
    /// Lanes that are not empty, the one whose turn it is first.
    order: VecDeque<u64>,
    len: usize,
}

impl<T> Default for Fair<T> {
    fn default() -> Fair<T> {
        Fair { lanes: HashMap::new(), order: VecDeque::new(), len: 0 }
    }
}

impl<T> Fair<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn push(&mut self, lane: u64, item: T, bytes: usize) {
        let waiting = self.lanes.entry(lane).or_default();
        if waiting.is_empty() {
            self.order.push_back(lane);
        }
        waiting.push_back(Waiting { item, bytes });
        self.len += 1;
    }

    /// Whether something would be taken. `may` is told the first of a lane and how many wait in it.
    pub fn is_ready(&self, may: impl Fn(&T, usize) -> bool) -> bool {
        self.order.iter().any(|lane| {
            let waiting = &self.lanes[lane];
            waiting.front().is_some_and(|first| may(&first.item, waiting.len()))
        })
    }

    /// Take up to so many items, and no more once so many bytes are taken.
    pub fn take(&mut self, items_max: usize, bytes_max: usize, may: impl Fn(&T, usize) -> bool) -> Vec<T> {
        let mut taken = Vec::with_capacity(items_max.min(self.len));
        let mut taken_bytes = 0;
        let mut held_up = 0;
        while held_up < self.order.len() && taken.len() < items_max && taken_bytes < bytes_max {
            let Some(lane) = self.order.pop_front() else { break };
            let waiting = self.lanes.get_mut(&lane).expect("a lane of the order is not empty");
            let (before, mut turn_bytes) = (taken.len(), 0);
            let items_end = items_max.min(before + TURN_ITEMS);
            while taken.len() < items_end
                && turn_bytes < TURN_BYTES
                && waiting.front().is_some_and(|first| may(&first.item, waiting.len()))
            {
                let Some(Waiting { item, bytes }) = waiting.pop_front() else { break };
                turn_bytes += bytes;
                taken.push(item);
            }
            held_up = if taken.len() == before { held_up + 1 } else { 0 };
            taken_bytes += turn_bytes;
            if waiting.is_empty() {
                self.lanes.remove(&lane);
            } else {
                self.order.push_back(lane);
            }
        }
        self.len -= taken.len();
        taken
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.lanes.retain(|_, waiting| {
            waiting.retain(|one| keep(&one.item));
            !waiting.is_empty()
        });
        self.order.retain(|lane| self.lanes.contains_key(lane));
        self.len = self.lanes.values().map(VecDeque::len).sum();
    }

    /// The first of the lane in which most wait.
    pub fn longest(&self) -> Option<&T> {
        let waiting = self.lanes.values().max_by_key(|waiting| waiting.len())?;
        waiting.front().map(|first| &first.item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(lanes: &[(u64, usize)]) -> Fair<(u64, usize)> {
        let mut fair = Fair::default();
        for (lane, count) in lanes {
            (0..*count).for_each(|n| fair.push(*lane, (*lane, n), 100));
        }
        fair
    }

    fn all(fair: &mut Fair<(u64, usize)>, items_max: usize) -> Vec<(u64, usize)> {
        fair.take(items_max, usize::MAX, |_, _| true)
    }

    #[test]
    fn a_long_lane_keeps_nobody_waiting_and_each_keeps_its_order() {
        let mut fair = filled(&[(1, 10_000), (2, 1), (3, 20)]);
        let taken = all(&mut fair, 64);
        assert_eq!(taken.len(), 64);
        assert_eq!(taken[8], (2, 0));
        assert_eq!(taken.iter().filter(|one| one.0 == 3).count(), 20);
        for lane in 1..=3 {
            let of_lane: Vec<usize> = taken.iter().filter(|one| one.0 == lane).map(|one| one.1).collect();
            assert!(of_lane.iter().copied().eq(0..of_lane.len()));
        }
        assert_eq!(fair.len(), 10_021 - 64);
        // Who comes now waits for one turn of the others.
        fair.push(4, (4, 0), 100);
        assert!(all(&mut fair, 16).contains(&(4, 0)));
        assert_eq!(all(&mut fair, usize::MAX).len(), 10_022 - 80);
        assert!(fair.is_empty() && fair.lanes.is_empty() && fair.order.is_empty());
    }

    #[test]
    fn bytes_end_a_turn_and_a_batch() {
        let mut fair = Fair::default();
        for n in 0..4 {
            fair.push(1, (1, n), 1 << 20);
            fair.push(2, (2, n), 10);
        }
        let taken = fair.take(100, 2 << 20, |_, _| true);
        assert_eq!(taken, [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (1, 1)]);
        assert_eq!(fair.take(100, 1, |_, _| true), [(1, 2)]);
    }

    #[test]
    fn a_lane_that_is_held_up_stays_as_it_is() {
        let mut fair = filled(&[(1, 5), (2, 30)]);
        // No more of lane 2 than leave twenty waiting; nothing of lane 1.
        let may = |item: &(u64, usize), waiting: usize| item.0 == 2 && waiting > 20;
        assert!(fair.is_ready(may));
        assert_eq!(fair.take(100, usize::MAX, may).len(), 10);
        assert!(!fair.is_ready(may));
        assert_eq!(fair.take(100, usize::MAX, may), []);
        assert_eq!(fair.longest(), Some(&(2, 10)));
        assert_eq!(all(&mut fair, 100).len(), 25);
    }

    #[test]
    fn what_is_of_no_interest_any_more_goes_from_all_lanes() {
        let mut fair = filled(&[(1, 5), (2, 1), (3, 2)]);
        fair.retain(|item| item.1 > 0);
        assert_eq!(fair.len(), 5);
        assert_eq!(all(&mut fair, 100).len(), 5);
    }
}
