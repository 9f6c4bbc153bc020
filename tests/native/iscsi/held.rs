//! Commands that stay in flight because their data is held back, and the mode pages that decide what becomes of them.

use std::time::Duration;

use reactor::sys::affinity::allowed_cores;

use super::super::host::pattern;
use super::super::server::Server;
use super::initiator::cdb;
use super::initiator::{Offer, PATIENCE, Session};
use super::{BLOCK, SIZE, config_with, portal, session_with};

/// Long enough for an answer that must not come.
pub const SHORT: Duration = Duration::from_millis(300);
/// Bytes of a write that has to be asked for.
pub const ASKED: usize = 8 * BLOCK;

/// All data by R2T.
pub const BY_R2T: Offer = Offer { immediate_data: Some(false), initial_r2t: Some(true), ..Offer::PLAIN };

/// A session that lets R2Ts wait: its writes stay in flight.
pub fn holding(server: &Server, number: u8) -> Session {
    let mut session = session_with(portal(server), number, BY_R2T);
    session.hold = Some(PATIENCE);
    session
}

/// A write in flight whose R2T has come. Its tag and its CmdSN.
pub fn pending(session: &mut Session, lun: u16, lba: u64) -> (u32, u32) {
    let cmd_sn = session.cmd_sn;
    let tag = session.start(0, lun, &cdb::write16(lba, 8, 0), &pattern(ASKED, 1), 0);
    assert!(session.is_waiting(tag, SHORT));
    (tag, cmd_sn)
}

/// LUN 0 is a volume whose first writes are on their way for so long each.
pub fn late_config(delays: &[Duration]) -> String {
    let rule = |(nth, delay): (usize, &Duration)| {
        format!("{{ op = \"write\", nth = {nth}, action = \"delay\", delay_ms = {} }}", delay.as_millis())
    };
    let rules: Vec<String> = (1..).zip(delays).map(rule).collect();
    let luns = r#"luns = [{ bdev = "late0" }, { bdev = "ram1" }]"#;
    config_with(r#"listen = ["127.0.0.1:0"]"#, luns).replace(
        "[iscsi]",
        &format!(
            r#"
            [[bdev]]
            name = "late0"
            driver = "inject"
            base = "ram0"
            rules = [{}]
            [iscsi]
            "#,
            rules.join(", ")
        ),
    )
}

/// What such a write would have written is not there.
pub fn zeros(session: &mut Session, lun: u16, lba: u64) {
    let found = session.command(lun, &cdb::read16(lba, 8), &[], ASKED).good();
    assert!(found.iter().all(|byte| *byte == 0), "an aborted write has been carried out");
}

/// Bytes of the header of mode parameters in their long form.
const HEADER: usize = 8;
/// Mode pages and their lengths (SPC-4 §7.5.8, SBC-3 §6.4.5).
const CONTROL: (u8, usize) = (0x0a, 12);
const CACHING: (u8, usize) = (0x08, 20);

/// The parameter list of a MODE SELECT that changes a page.
fn changed(session: &mut Session, lun: u16, (page, len): (u8, usize), change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let len = HEADER + len;
    let mut list = session.command(lun, &cdb::mode_sense10(page, len as u16), &[], len).good();
    // The mode data length is reserved in MODE SELECT, and so is PS.
    list[..2].fill(0);
    list[HEADER] &= 0x3f;
    change(&mut list[HEADER..]);
    list
}

/// The parameter list of a MODE SELECT that changes the control mode page.
pub fn changed_control(session: &mut Session, lun: u16, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    changed(session, lun, CONTROL, change)
}

/// The parameter list of a MODE SELECT that changes the caching mode page.
pub fn changed_caching(session: &mut Session, lun: u16, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    changed(session, lun, CACHING, change)
}

/// The control mode page.
pub fn control_page(session: &mut Session, lun: u16) -> Vec<u8> {
    changed_control(session, lun, |_| {}).split_off(HEADER)
}

/// Changes the control mode page, whatever is in flight.
pub fn control(session: &mut Session, lun: u16, change: impl FnOnce(&mut [u8])) {
    let hold = session.hold.take();
    let list = changed_control(session, lun, change);
    session.command(lun, &cdb::mode_select10(list.len() as u16), &list, 0).good();
    assert_eq!(control_page(session, lun), list[HEADER..], "what was set is there");
    session.hold = hold;
}

/// A target beside that of most tests, whose volume is of nobody else.
pub const BESIDE: &str = "iqn.2026-11.io.reactor:beside";

/// Two reactors, where the machine has two cores.
pub fn two_cores() -> String {
    let cores = allowed_cores().unwrap();
    format!("[reactor]\ncores = {:?}\n", &cores[..cores.len().min(2)])
}

/// A configuration on two reactors with [`BESIDE`] as well.
pub fn with_beside(config: &str) -> String {
    let beside = format!("[[iscsi.target]]\niqn = \"{BESIDE}\"\nluns = [{{ bdev = \"ram9\" }}]\n");
    let volume = format!("[[bdev]]\nname = \"ram9\"\ndriver = \"malloc\"\nsize = {SIZE}\n[iscsi]");
    two_cores() + &config.replace("[iscsi]", &volume) + &beside
}
