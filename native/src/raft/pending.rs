//! Proposals waiting for their outcome, known by (index, term) and never by index alone.
//!
//! An entry is committed at an index exactly once. When that entry carries the proposal's term the proposal is
//! committed; with any other term it is lost for certain. Losing leadership, or having the entry overwritten in
//! the local log, decides nothing: another member may still hold the entry and commit it. A snapshot that jumps
//! over the index leaves the outcome unknown for good.

use std::collections::VecDeque;

/// Proposals of one leadership: indices rise within it, and several leaderships may overlap in indices.
struct Tenure {
    term: u64,
    waiting: VecDeque<(u64, u64)>,
}

#[derive(Default)]
pub struct Pending {
    tenures: Vec<Tenure>,
}

impl Pending {
    pub fn proposed(&mut self, index: u64, term: u64, request: u64) {
        match self.tenures.last_mut().filter(|tenure| tenure.term == term) {
            Some(tenure) => tenure.waiting.push_back((index, request)),
            None => self.tenures.push(Tenure { term, waiting: VecDeque::from([(index, request)]) }),
        }
    }

    /// The request that (index, term) answers, or 0. Requests that lost that index to it go to `lost`.
    pub fn committed(&mut self, index: u64, term: u64, mut lost: impl FnMut(u64)) -> u64 {
        let mut answered = 0;
        for tenure in &mut self.tenures {
            while let Some((at, request)) = tenure.waiting.front().copied().filter(|(at, _)| *at <= index) {
                tenure.waiting.pop_front();
                if tenure.term == term && at == index {
                    answered = request;
                } else {
                    lost(request);
                }
            }
        }
        self.tenures.retain(|tenure| !tenure.waiting.is_empty());
        answered
    }

    /// A snapshot covers everything up to `index`: those requests will never be heard of.
    pub fn jumped_over(&mut self, index: u64) -> Vec<u64> {
        let mut unknown = Vec::new();
        for tenure in &mut self.tenures {
            while tenure.waiting.front().is_some_and(|(at, _)| *at <= index) {
                unknown.extend(tenure.waiting.pop_front().map(|(_, request)| request));
            }
        }
        self.tenures.retain(|tenure| !tenure.waiting.is_empty());
        unknown
    }

    pub fn is_empty(&self) -> bool {
        self.tenures.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(pending: &mut Pending, index: u64, term: u64) -> (u64, Vec<u64>) {
        let mut lost = Vec::new();
        let answered = pending.committed(index, term, |request| lost.push(request));
        (answered, lost)
    }

    #[test]
    fn an_answer_needs_index_and_term() {
        let mut pending = Pending::default();
        pending.proposed(5, 2, 51);
        pending.proposed(6, 2, 61);
        assert_eq!(outcome(&mut pending, 4, 2), (0, vec![]));
        assert_eq!(outcome(&mut pending, 5, 2), (51, vec![]));
        assert_eq!(outcome(&mut pending, 6, 3), (0, vec![61]));
        assert!(pending.is_empty());
    }

    #[test]
    fn two_leaderships_may_wait_for_the_same_index() {
        let mut pending = Pending::default();
        pending.proposed(5, 2, 51);
        pending.proposed(6, 2, 61);
        pending.proposed(6, 4, 62);
        assert_eq!(outcome(&mut pending, 5, 3), (0, vec![51]));
        assert_eq!(outcome(&mut pending, 6, 4), (62, vec![61]));
    }

    #[test]
    fn a_snapshot_leaves_outcomes_unknown_not_lost() {
        let mut pending = Pending::default();
        pending.proposed(5, 2, 51);
        pending.proposed(9, 2, 91);
        assert_eq!(pending.jumped_over(7), vec![51]);
        assert_eq!(outcome(&mut pending, 9, 2), (91, vec![]));
    }
}
