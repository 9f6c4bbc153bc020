use std::os::unix::fs::symlink;

use super::*;

const SECOND: u64 = 1_000_000_000;
/// Not zero: where the clock stands at first means nothing.
const BEGIN: u64 = 77 * SECOND;

type Change = fn(&mut DevInfo);

/// A device of a reactor.
pub fn info(id: u32, state: DevState, pid: i32) -> DevInfo {
    DevInfo {
        nr_hw_queues: 2,
        queue_depth: 64,
        state,
        dev_id: id,
        ublksrv_pid: pid,
        flags: Features(0x4a),
        ublksrv_flags: 0x5243 << 48 | 7,
        ..DevInfo::default()
    }
}

/// A kernel with one device, in which time passes as somebody waits.
pub struct Fake {
    now: u64,
    device: Option<DevInfo>,
    /// Until then the character device is open.
    busy_until: u64,
    /// What opening it says meanwhile.
    errno: i32,
    /// Whether the process that it names serves it.
    serves: bool,
    used: Use,
    change: Option<(u64, Change)>,
    /// How long a removal takes: longer than it is waited for, unless it is nothing.
    removal: u64,
    deleted_at: Option<u64>,
    /// What happens when the disk is stopped.
    after_stop: Option<fn(&mut Fake)>,
    steps: Vec<&'static str>,
}

impl Fake {
    /// Its server has ended, which this kernel notices after so many seconds.
    pub fn busy_for(info: DevInfo, seconds: u64) -> Fake {
        Fake {
            now: BEGIN,
            device: Some(info),
            busy_until: BEGIN + seconds * SECOND,
            errno: libc::EBUSY,
            serves: false,
            used: Use::Free,
            change: None,
            removal: 0,
            deleted_at: None,
            after_stop: None,
            steps: Vec::new(),
        }
    }

    /// The device changes after so many seconds.
    pub fn change_at(&mut self, seconds: u64, change: Change) {
        self.change = Some((BEGIN + seconds * SECOND, change));
    }

    /// Whether it was told to stop or delete anything.
    pub fn changed_anything(&self) -> bool {
        !self.steps.is_empty()
    }

    fn waited_s(&self) -> u64 {
        (self.now - BEGIN) / SECOND
    }

    fn remove(&mut self, before: &DevInfo, spare: bool) -> Result<Removed, String> {
        remove(self, before, spare).map_err(|kept| kept.to_string())
    }
}

impl Kernel for Fake {
    fn info(&mut self, _: u32) -> Result<Option<DevInfo>, ControlError> {
        Ok(self.device.filter(|_| self.deleted_at.is_none_or(|at| self.now < at)))
    }

    fn stop_if_free(&mut self, _: u32) -> Result<Use, ControlError> {
        self.steps.push("stop");
        if let Some(after) = self.after_stop.take() {
            after(self);
        }
        Ok(self.used)
    }

    fn delete(&mut self, _: u32) -> Result<bool, ControlError> {
        self.steps.push("delete");
        self.deleted_at = Some(self.now + self.removal);
        Ok(self.removal == 0)
    }

    fn try_open(&mut self, _: u32) -> io::Result<()> {
        if self.now < self.busy_until { Err(io::Error::from_raw_os_error(self.errno)) } else { Ok(()) }
    }

    fn serves(&mut self, _: u32, pid: i32) -> bool {
        self.serves && pid > 0
    }

    fn holders(&mut self, _: u32) -> Vec<String> {
        if self.used == Use::Held { vec!["mount /mnt".to_owned()] } else { Vec::new() }
    }

    fn later(&mut self) -> u64 {
        self.now += SECOND / 10;
        if let Some((at, change)) = self.change
            && self.now >= at
        {
            self.change = None;
            self.device.iter_mut().for_each(change);
        }
        self.now
    }
}

fn live() -> DevInfo {
    info(3, DevState::LIVE, 812)
}

#[test]
fn a_server_that_has_ended_is_waited_for_and_one_that_lives_is_not() {
    for (state, serves, errno, noticed_s, served, waits_s) in [
        (DevState::LIVE, false, libc::EBUSY, 0, false, 0..=0),
        (DevState::LIVE, false, libc::EBUSY, 30, false, 29..=30),
        (DevState::LIVE, false, libc::EBUSY, 99, true, 45..=46),
        (DevState::LIVE, true, libc::EBUSY, 99, true, 2..=3),
        (DevState::LIVE, true, libc::EBUSY, 1, false, 0..=1),
        // No process, and no right either: nobody knows.
        (DevState::LIVE, false, libc::EACCES, 99, true, 2..=3),
        // The kernel has noticed: somebody has opened it since.
        (DevState::QUIESCED, false, libc::EBUSY, 99, true, 2..=3),
    ] {
        let info = info(3, state, 812);
        let mut kernel = Fake { serves, errno, ..Fake::busy_for(info, noticed_s) };
        let case = format!("{state:?}, serves: {serves}, errno {errno}, noticed after {noticed_s} s");
        assert_eq!(is_served(&mut kernel, &info), served, "{case}");
        assert!(waits_s.contains(&kernel.waited_s()), "{case}: waited {} s", kernel.waited_s());
    }
}

#[test]
fn what_was_left_is_deleted_once_its_server_is_gone() {
    let gone = Removed { gone: true, users: Vec::new() };
    for spare in [true, false] {
        let steps: &[_] = if spare { &["stop", "delete"] } else { &["delete"] };
        // The kernel notices the end of the server, and forgets it.
        let mut kernel = Fake::busy_for(live(), 30);
        kernel.change_at(29, |info| (info.state, info.ublksrv_pid) = (DevState::QUIESCED, -1));
        assert_eq!(kernel.remove(&live(), spare), Ok(gone.clone()));
        assert_eq!(kernel.steps, steps);
    }
    let mut held = Fake { used: Use::Held, ..Fake::busy_for(live(), 0) };
    assert_eq!(held.remove(&live(), true), Err("it is in use: mount /mnt".to_owned()));
    assert_eq!(held.steps, ["stop"]);
    assert_eq!(held.remove(&live(), false).unwrap().users, ["mount /mnt"]);
    let mut served = Fake { serves: true, ..Fake::busy_for(live(), 99) };
    assert_eq!(served.remove(&live(), false), Err("process 812 serves it".to_owned()));
    assert!(!served.changed_anything());
}

#[test]
fn a_removal_that_waits_for_a_dead_server_is_waited_for() {
    let quiesced = info(3, DevState::QUIESCED, -1);
    for (before, used, removal_s, gone, waits_s) in [
        (live(), Use::Free, 30, true, 29..=30),
        (live(), Use::Free, 99, false, 45..=46),
        // It waits for its users.
        (live(), Use::Held, 30, false, 0..=0),
        // And for udev.
        (quiesced, Use::Free, 5, true, 4..=5),
        (quiesced, Use::Free, 30, false, 10..=11),
    ] {
        let mut kernel = Fake { used, removal: removal_s * SECOND, ..Fake::busy_for(before, 0) };
        assert_eq!(kernel.remove(&before, false).unwrap().gone, gone, "{before:?}, {used:?}");
        assert!(waits_s.contains(&kernel.waited_s()), "{before:?}, {used:?}: waited {} s", kernel.waited_s());
    }
}

#[test]
fn what_has_changed_while_it_was_waited_for_is_left_alone() {
    let left = info(3, DevState::QUIESCED, -1);
    let changes: [(DevInfo, Change, &str); 6] = [
        (live(), |info| info.ublksrv_flags ^= 1, "its number is that of another device, of a reactor"),
        (live(), |info| info.ublksrv_flags = 0, "its number is that of another device, of another program"),
        (live(), |info| info.queue_depth += 1, "its number is that of another device, of a reactor"),
        (live(), |info| info.ublksrv_pid = 900, "process 900 serves it"),
        (left, |info| (info.state, info.ublksrv_pid) = (DevState::LIVE, 900), "process 900 serves it"),
        (left, |info| info.state = DevState::LIVE, "a server has it"),
    ];
    for (before, change, what) in changes {
        for spare in [true, false] {
            let mut kernel = Fake::busy_for(before, 1);
            kernel.change_at(0, change);
            assert_eq!(kernel.remove(&before, spare), Err(format!("it has changed meanwhile: {what}")));
            assert!(!kernel.changed_anything(), "{what}: {:?}", kernel.steps);
        }
    }
    let mut gone = Fake { device: None, ..Fake::busy_for(left, 0) };
    assert_eq!(gone.remove(&left, false), Err("it has changed meanwhile: it is gone".to_owned()));
    assert!(!gone.changed_anything());
}

#[test]
fn it_is_looked_at_again_after_its_users_were() {
    let left = info(3, DevState::QUIESCED, -1);
    for (after_stop, what) in [
        ((|kernel| kernel.device = Some(live())) as fn(&mut Fake), "process 812 serves it"),
        (|kernel| kernel.busy_until = u64::MAX, "a server has it"),
    ] {
        let mut kernel = Fake { after_stop: Some(after_stop), ..Fake::busy_for(left, 0) };
        let why = kernel.remove(&left, true).unwrap_err();
        assert!(why.ends_with(what), "{why}");
        assert_eq!(kernel.steps, ["stop"]);
    }
}

#[test]
fn a_process_serves_what_it_has_open_until_it_has_ended() {
    let proc = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = proc.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let open = |path: &str, to: &str| {
        let path = proc.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    };
    let serves = |pid| serves_in(proc.path(), 3, pid);
    for (pid, state) in [(12, "S"), (13, "Z"), (14, "R"), (15, "X"), (16, "S"), (17, "D")] {
        write(&format!("{pid}/stat"), &format!("{pid} (a) R (b)) {state} 1 1 1\n"));
    }
    for pid in [12, 13, 15] {
        open(&format!("{pid}/fd/7"), "/dev/ublkc3");
    }
    // Numbers that begin like it, its disk, and a name of another kind.
    for (number, other) in ["/dev/ublkc31", "/dev/ublkb3", "anon_inode:[io_uring]"].iter().enumerate() {
        open(&format!("14/fd/{number}"), other);
    }
    open("16/fd/0", "/dev/ublkc3 (deleted)");
    assert!(serves(12) && serves(16), "they have it open");
    assert!(!serves(13) && !serves(15), "they have ended");
    assert!(!serves(14), "another process has the number");
    assert!(serves(17), "its files cannot be seen");
    assert!(!serves(18) && !serves(0) && !serves(-1), "there is none");
    let own = std::process::id() as i32;
    assert!(is_alive(Path::new("/proc"), own) && !super::serves(3, own));
}
