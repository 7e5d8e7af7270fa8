//! When the application is woken, and what goes past it: hosts driven by hand over mailboxes with a delay that no
//! test waits for.

mod common;

use common::*;
use flotta_native::raft::clock::Clock;
use flotta_native::raft::error::Fatal;
use flotta_native::raft::mailbox::{Carrier, Command, Mailbox};
use flotta_native::raft::options::Options;
use flotta_native::raft::out::{Applied, Out, Payload, Reason, RoleChange};
use flotta_native::raft::wire::{decode, Outbound};
use raft::eraftpb::MessageType;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const NEVER_MS: u64 = 3_600_000;

fn mailbox(apply_delay_ms: u64) -> Mailbox {
    Mailbox::new(&Options { apply_delay_ms, ..Options::default() }, Clock::System).unwrap()
}

/// Deliver what nodes say until they are silent; what else the watched one says goes into its mailbox.
fn settle_through(cluster: &mut Cluster, watched: u32, mailbox: &Mailbox) {
    settle_but(cluster, watched, mailbox, |_| false);
}

/// The same, and messages of a certain kind to the watched one are lost.
fn settle_but(cluster: &mut Cluster, watched: u32, mailbox: &Mailbox, lost: fn(MessageType) -> bool) {
    loop {
        let mut frames = Vec::new();
        for node in 1..=3 {
            let host = cluster.host(node);
            host.drive(&mut |_| ()).unwrap();
            let mut out = host.take_out();
            frames.extend(out.messages.take());
            if node == watched {
                mailbox.publish(&mut out);
            }
        }
        if frames.is_empty() {
            return;
        }
        for (to, frame) in frames {
            let inbound = decode(&frame.into(), to).unwrap();
            for (group, message) in inbound.messages {
                if to != watched || !lost(message.get_msg_type()) {
                    let alone = Outbound::single(inbound.from_node, group, &message);
                    cluster.host(to).step(&alone.into());
                }
            }
        }
    }
}

fn propose(cluster: &mut Cluster, leader: u32, request: u64) {
    cluster.host(leader).propose(vec![(GROUP, request, b"x".to_vec().into())]);
}

#[test]
fn what_a_follower_applies_waits_and_what_the_leader_applies_does_not() {
    let (mut cluster, leader) = trio();
    let follower = others(leader)[0];
    for (node, wakes) in [(leader, 1), (follower, 0)] {
        let mailbox = mailbox(NEVER_MS);
        propose(&mut cluster, leader, 7);
        settle_through(&mut cluster, node, &mailbox);
        assert_eq!(mailbox.wakes(), wakes, "node {node}");
        assert_eq!(mailbox.poll().unwrap().applies.len(), wakes as usize, "node {node}");
        assert_eq!(mailbox.salvage().applies.len(), 1 - wakes as usize, "node {node}");
    }
    let at_once = mailbox(0);
    propose(&mut cluster, leader, 8);
    settle_through(&mut cluster, follower, &at_once);
    assert_eq!(at_once.wakes(), 1);
}

#[test]
fn a_followers_applies_that_a_read_waits_for_are_told_and_so_is_what_waited_before_them() {
    let (mut cluster, leader) = trio();
    let follower = others(leader)[0];
    let mailbox = mailbox(NEVER_MS);
    propose(&mut cluster, leader, 7);
    settle_through(&mut cluster, follower, &mailbox);
    assert_eq!(mailbox.wakes(), 0);
    // The next entry is committed without this follower, and the read's index lies ahead of what it has.
    propose(&mut cluster, leader, 8);
    settle_but(&mut cluster, follower, &mailbox, |kind| kind == MessageType::MsgAppend);
    cluster.host(follower).read_index(vec![(GROUP, 99)]);
    settle_but(&mut cluster, follower, &mailbox, |kind| kind == MessageType::MsgAppend);
    let answered = mailbox.poll().unwrap();
    assert_eq!((mailbox.wakes(), answered.applies.len(), answered.reads.len()), (1, 1, 1));
    let (_, _, index) = answered.reads[0];
    assert_eq!(index, answered.applies[0].index + 1);
    // Now it arrives: somebody waits for it.
    for _ in 0..3 {
        cluster.host(leader).tick();
        settle_through(&mut cluster, follower, &mailbox);
    }
    let applied = mailbox.poll().unwrap().applies;
    assert_eq!((mailbox.wakes(), applied.len(), applied[0].index), (2, 1, index));
    propose(&mut cluster, leader, 9);
    settle_through(&mut cluster, follower, &mailbox);
    assert_eq!(mailbox.wakes(), 2, "nobody waits for the next one");
}

#[test]
fn applies_that_wait_are_told_when_they_are_many_and_when_it_is_time() {
    let (mut cluster, leader) = trio();
    let follower = others(leader)[0];
    let many = mailbox(NEVER_MS);
    for request in 0..5000 {
        propose(&mut cluster, leader, 1 + request);
    }
    settle_through(&mut cluster, follower, &many);
    assert_eq!(many.wakes(), 1);

    let soon = mailbox(1);
    propose(&mut cluster, leader, 6001);
    settle_through(&mut cluster, follower, &soon);
    assert_eq!(soon.wait(Instant::now() + Duration::from_millis(50)).unwrap().len(), 0);
    assert_eq!(soon.wakes(), 1);
    soon.poll().unwrap();
    assert_eq!(soon.wait(Instant::now() + Duration::from_millis(5)).unwrap().len(), 0);
    assert_eq!(soon.wakes(), 1, "once is enough");
}

fn entry(group: u64, index: u64, request: u64) -> Applied {
    Applied { group, index, term: 1, request, payload: Payload::Normal(b"x".to_vec().into()) }
}

fn publish(mailbox: &Mailbox, fill: impl FnOnce(&mut Out)) {
    let mut out = Out::default();
    fill(&mut out);
    mailbox.publish(&mut out);
}

fn polled(mailbox: &Mailbox) -> Vec<(u64, u64)> {
    mailbox.poll().unwrap().applies.iter().map(|applied| (applied.group, applied.index)).collect()
}

#[test]
fn what_is_waited_for_takes_along_what_waits_of_its_own_group_in_order_and_nothing_of_others() {
    let mailbox = mailbox(NEVER_MS);
    publish(&mailbox, |out| {
        for (group, index) in [(1, 5), (2, 8), (1, 6)] {
            out.apply(entry(group, index, 0));
        }
    });
    publish(&mailbox, |out| out.apply(entry(2, 9, 0)));
    assert_eq!((mailbox.wakes(), polled(&mailbox)), (0, vec![]));
    publish(&mailbox, |out| {
        out.apply(entry(3, 1, 77));
        out.apply(entry(1, 7, 78));
        out.apply(entry(1, 8, 0));
        out.apply(entry(2, 10, 0));
    });
    assert_eq!((mailbox.wakes(), polled(&mailbox)), (1, vec![(1, 5), (1, 6), (3, 1), (1, 7), (1, 8)]));
    publish(&mailbox, |out| out.event(0, "anything", 0, ""));
    assert_eq!(
        (mailbox.wakes(), polled(&mailbox)),
        (2, vec![]),
        "what is said of no group takes nothing along"
    );
    publish(&mailbox, |out| out.reads.push((2, 99, 9)));
    assert_eq!((mailbox.wakes(), polled(&mailbox)), (3, vec![(2, 8), (2, 9), (2, 10)]));
}

#[test]
fn everything_said_of_a_group_takes_along_what_waits_of_it() {
    let say: [fn(&mut Out); 5] = [
        |out| out.event(4, "anything", 0, ""),
        |out| out.drop_one(4, 9, Reason::Lost, 0),
        |out| out.roles.push(RoleChange { group: 4, role: 0, term: 2, leader: 1 }),
        |out| out.snapshots_wanted.push((4, 3, 1)),
        |out| out.compactions_wanted.push((4, 3)),
    ];
    for what in say {
        let mailbox = mailbox(NEVER_MS);
        publish(&mailbox, |out| out.apply(entry(4, 3, 0)));
        publish(&mailbox, what);
        assert_eq!((mailbox.wakes(), polled(&mailbox)), (1, vec![(4, 3)]));
    }
}

#[test]
fn what_waits_counts_as_backlog_and_leaves_with_the_last_words() {
    let mailbox = mailbox(NEVER_MS);
    publish(&mailbox, |out| out.apply(entry(1, 5, 0)));
    assert_eq!(mailbox.backlog_bytes(), entry(1, 5, 0).bytes());
    mailbox.fail(Fatal::Stopped);
    assert_eq!((polled(&mailbox), mailbox.backlog_bytes()), (vec![(1, 5)], 0));
    assert_eq!(mailbox.poll().err(), Some(Fatal::Stopped));
}

/// The kinds of messages that `node` says until all are silent, none of which is lost.
fn kinds_said(cluster: &mut Cluster, node: u32) -> Vec<MessageType> {
    let mut said = Vec::new();
    loop {
        let mut frames = Vec::new();
        for each in 1..=3 {
            cluster.host(each).drive(&mut |_| ()).unwrap();
            for (to, frame) in cluster.host(each).take_out().messages.take() {
                if each == node {
                    said.extend(
                        decode(&frame.clone().into(), to)
                            .unwrap()
                            .messages
                            .iter()
                            .map(|(_, sent)| sent.get_msg_type()),
                    );
                }
                frames.push((to, frame));
            }
        }
        if frames.is_empty() {
            return said;
        }
        for (to, frame) in frames {
            cluster.host(to).step(&frame.into());
        }
    }
}

#[test]
fn the_news_of_a_commit_rides_with_the_next_entries_or_is_told_in_time() {
    let (mut cluster, leader) = trio_with(|options| options.apply_delay_ms = 5);
    let committed = |cluster: &mut Cluster, node: u32| cluster.host(node).status(None)[0].committed;
    kinds_said(&mut cluster, leader);
    let before = committed(&mut cluster, leader);
    for request in 1..=3 {
        propose(&mut cluster, leader, request);
        assert_eq!(
            kinds_said(&mut cluster, leader),
            vec![MessageType::MsgAppend; 2],
            "entries, and nothing after"
        );
        assert_eq!(committed(&mut cluster, leader), before + request);
        for follower in others(leader) {
            assert_eq!(
                committed(&mut cluster, follower),
                before + request - 1,
                "it came with the next entry"
            );
        }
    }
    let now = Instant::now();
    let due = now + Duration::from_millis(5);
    cluster.host(leader).hold_news(|| now);
    cluster.host(leader).hold_news(|| due);
    assert_eq!(cluster.host(leader).tell_at(), Some(due), "the first news sets the time");
    cluster.host(leader).tell_if_due(due - Duration::from_micros(1));
    cluster.host(leader).tick();
    assert_eq!(kinds_said(&mut cluster, leader), vec![], "it is not time");
    cluster.host(leader).tell_if_due(due);
    assert_eq!(kinds_said(&mut cluster, leader), vec![MessageType::MsgAppend; 2]);
    for follower in others(leader) {
        assert_eq!(committed(&mut cluster, follower), before + 3);
    }
    cluster.host(leader).hold_news(|| due);
    assert_eq!(cluster.host(leader).tell_at(), None);
    cluster.host(leader).tell_if_due(due);
    assert_eq!(kinds_said(&mut cluster, leader), vec![], "once is enough");
}

#[test]
fn by_a_clock_that_is_set_by_hand_what_waits_leaves_when_it_is_set_to_its_time() {
    let clock = Clock::by_hand();
    clock.set_us(1_000);
    let mailbox = Mailbox::new(&Options { apply_delay_ms: 5, ..Options::default() }, clock).unwrap();
    publish(&mailbox, |out| out.apply(entry(1, 5, 0)));
    assert_eq!(mailbox.due_at().and_then(|at| mailbox.clock().us_at(at)), Some(6_000));
    mailbox.clock().set_us(5_999);
    publish(&mailbox, |out| out.apply(entry(1, 6, 0)));
    assert_eq!(polled(&mailbox), vec![]);
    mailbox.clock().set_us(6_000);
    assert_eq!((polled(&mailbox), mailbox.due_at()), (vec![(1, 5), (1, 6)], None));
}

#[derive(Default)]
struct Taking {
    frames: Mutex<Vec<(u32, Vec<u8>)>>,
    ended: Mutex<Vec<Fatal>>,
}

impl Carrier for Taking {
    fn carry(&self, messages: &mut Outbound) {
        self.frames.lock().unwrap().extend(messages.take_for(|node| node == 2));
    }

    fn host_ended(&self, reason: &Fatal) {
        self.ended.lock().unwrap().push(reason.clone());
    }
}

#[test]
fn messages_that_are_carried_wake_nobody_and_the_others_do() {
    let mut host = Cluster::new(3, &[1, 2, 3], |_| ());
    let (mailbox, carrier) = (mailbox(0), Arc::new(Taking::default()));
    mailbox.set_carrier(Some(carrier.clone()));
    host.host(1).campaign(GROUP);
    host.host(1).drive(&mut |_| ()).unwrap();
    let mut out = host.host(1).take_out();
    let mut messages = Out::default();
    messages.messages = std::mem::take(&mut out.messages);
    mailbox.publish(&mut messages);
    let carried = std::mem::take(&mut *carrier.frames.lock().unwrap());
    assert_eq!(carried.iter().map(|(node, _)| *node).collect::<Vec<_>>(), vec![2]);
    assert_eq!(decode(&carried[0].1.clone().into(), 2).unwrap().messages.len(), 1);
    assert_eq!(mailbox.wakes(), 1, "nobody carries what is for the third");
    assert_eq!(mailbox.take_messages_to(3).len(), 1);
    assert!(mailbox.poll().unwrap().is_empty());
    mailbox.publish(&mut Out::default());
    assert_eq!(mailbox.wakes(), 1);

    mailbox.fail(Fatal::Stopped);
    assert_eq!(*carrier.ended.lock().unwrap(), vec![Fatal::Stopped]);
    assert_eq!(mailbox.send(Command::Unreachable(2)), Err(Fatal::Stopped));
}

#[test]
fn leaders_beat_at_the_same_ticks_whenever_they_were_elected() {
    for elected_at in 0..4 {
        let mut cluster = Cluster::new(3, &[1, 2, 3], |options| options.in_step = true);
        let mut beats = Vec::new();
        for tick in 1..=12 {
            if tick == elected_at + 1 {
                cluster.host(1).campaign(GROUP);
                kinds_said(&mut cluster, 1);
                assert_eq!(cluster.leader(), Some(1));
            }
            for node in 1..=3 {
                cluster.host(node).tick();
            }
            if kinds_said(&mut cluster, 1).contains(&MessageType::MsgHeartbeat) {
                beats.push(tick);
            }
        }
        let first = beats[0];
        assert!(first <= elected_at + 3, "elected after tick {elected_at}, first beat {first}");
        assert_eq!(beats, (first..=12).step_by(2).collect::<Vec<_>>());
        assert_eq!(first % 2, 1, "elected after tick {elected_at}");
    }
}
