//! When the application is woken, and what goes past it: hosts driven by hand over mailboxes with a delay that no
//! test waits for.

mod common;

use common::*;
use flotta_native::raft::error::Fatal;
use flotta_native::raft::mailbox::{Carrier, Command, Mailbox};
use flotta_native::raft::options::Options;
use flotta_native::raft::out::Out;
use flotta_native::raft::wire::{decode, Outbound};
use raft::eraftpb::MessageType;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const NEVER_MS: u64 = 3_600_000;

fn mailbox(apply_delay_ms: u64) -> Mailbox {
    Mailbox::new(&Options { apply_delay_ms, ..Options::default() }).unwrap()
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
        assert_eq!(mailbox.poll().unwrap().applies.len(), 1);
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
fn applies_that_wait_are_told_when_they_are_many_when_it_is_time_and_with_anything_else() {
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

    let other = mailbox(NEVER_MS);
    propose(&mut cluster, leader, 6002);
    settle_through(&mut cluster, follower, &other);
    assert_eq!(other.wakes(), 0);
    let mut out = Out::default();
    out.event(0, "anything", 0, "");
    other.publish(&mut out);
    assert_eq!((other.wakes(), other.poll().unwrap().applies.len()), (1, 1));
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
