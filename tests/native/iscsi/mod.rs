//! The iSCSI door, driven by an initiator of our own.

mod busy;
mod bystander;
mod chap;
mod crowds;
mod discover;
mod dismiss;
mod effects;
mod fence;
mod functions;
mod held;
mod hostile;
mod initiator;
mod life;
mod lost;
mod manage;
mod mangled;
mod modes;
mod negotiate;
mod reinstate;
mod requests;
mod reserve;
mod silent;
mod unit;
mod verify;

use std::net::SocketAddr;
use std::time::Duration;

use super::server::{PATIENCE, Server, now, until};
use initiator::{Offer, Options, Session};

/// The target of most tests.
const IQN: &str = "iqn.2026-11.io.reactor:vol0";
const BLOCK: usize = 512;
const MIB: usize = 1 << 20;
/// Bytes of each volume.
const SIZE: usize = 16 * MIB;

/// Two RAM volumes; `portal` is the table of the door without its name, `target` what a target has beside its name.
fn config_with(portal: &str, target: &str) -> String {
    format!(
        r#"
        [memory]
        size = "128MiB"
        [[bdev]]
        name = "ram0"
        driver = "malloc"
        size = {SIZE}
        [[bdev]]
        name = "ram1"
        driver = "malloc"
        size = {SIZE}
        [iscsi]
        {portal}
        [[iscsi.target]]
        iqn = "{IQN}"
        {target}
        "#
    )
}

/// Both volumes as LUN 0 and 1 of one target on one portal.
fn config() -> String {
    config_with(r#"listen = ["127.0.0.1:0"]"#, r#"luns = [{ bdev = "ram0" }, { bdev = "ram1" }]"#)
}

/// The first portal of a server.
fn portal(server: &Server) -> SocketAddr {
    *server.portals.first().expect("a line that connects an initiator")
}

/// A session of initiator `number` whose unit attentions are behind it.
fn session(address: SocketAddr, number: u8) -> Session {
    session_with(address, number, Offer::PLAIN)
}

fn session_with(address: SocketAddr, number: u8, offer: Offer) -> Session {
    let mut session = Session::open(address, &Options::new(IQN, number).with(offer));
    for lun in [0, 1] {
        session.settle(lun);
    }
    session
}

/// Resident memory once it no longer grows by itself: the arena is populated while serving.
fn settled(server: &Server) -> u64 {
    let (mut last, mut since) = (server.program.resident(), now());
    until(PATIENCE, || {
        let current = server.program.resident();
        if current.abs_diff(last) > 256 << 10 {
            (last, since) = (current, now());
        }
        now() - since > Duration::from_secs(1)
    });
    server.program.resident()
}
