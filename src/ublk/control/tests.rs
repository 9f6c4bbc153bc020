//! What needs no driver: messages, masks, lists and nodes. The commands themselves are tested in guests.

use super::*;

#[test]
fn what_is_missing_is_one_line_with_a_remedy() {
    let open = |errno| Unavailable::from(OpenError::Device(io::Error::from_raw_os_error(errno))).to_string();
    for errno in [libc::ENOENT, libc::ENXIO, libc::ENODEV] {
        assert_eq!(open(errno), "the kernel has no ublk: modprobe ublk_drv (CONFIG_BLK_DEV_UBLK)");
    }
    assert!(open(libc::EACCES).contains("rights on it, and CAP_SYS_ADMIN"), "{}", open(libc::EACCES));
    assert!(open(libc::EIO).starts_with("/dev/ublk-control cannot be opened: Input/output error"));
    let ring = Unavailable::from(OpenError::NoWideEntries).to_string();
    assert!(ring.contains("128 bytes (Linux 5.19"), "{ring}");
    let first = |errno| Unavailable::of_first(ControlError::refused(&GET_FEATURES, ANY_DEVICE, errno)).to_string();
    assert!(first(libc::EPERM).contains("CAP_SYS_ADMIN"));
    for errno in [libc::ENODEV, libc::EOPNOTSUPP, libc::EINVAL] {
        assert!(first(errno).contains("Linux 6.5 or newer"), "{}", first(errno));
    }
    assert_eq!(first(libc::EIO), "ublk does not answer: ublk: GET_FEATURES: Input/output error (os error 5)");
    let all = [open(libc::ENOENT), open(libc::EACCES), open(libc::EIO), ring, first(libc::EPERM), first(libc::EINVAL)];
    assert!(all.iter().all(|text| !text.contains('\n')), "{all:?}");
}

#[test]
fn a_failed_command_says_all_that_is_known() {
    let error = ControlError::refused(&ADD, 3, libc::EEXIST);
    assert_eq!(error.errno(), Some(libc::EEXIST));
    assert_eq!(
        error.to_string(),
        "ublk device 3: ADD_DEV: File exists (os error 17); the number is taken: use another id, or delete the device that has it"
    );
    let error = ControlError::new(&START_DEV, 0, Failure::TimedOut(START));
    assert_eq!(error.errno(), None);
    assert_eq!(
        error.to_string(),
        "ublk device 0: START_DEV: no answer within 30 s; not every queue has fetched all its commands, or the server does not answer the first reads"
    );
    let error = ControlError::new(&GET_INFO, 7, Failure::NotSent(CallError::TooLong(70_000)));
    assert_eq!(
        error.to_string(),
        "ublk device 7: GET_DEV_INFO: a buffer of 70000 bytes is too long for a command (65535)"
    );
    let error = ControlError::refused(&SET_PARAMS, 7, libc::EFAULT);
    assert_eq!(error.to_string(), "ublk device 7: SET_PARAMS: Bad address (os error 14)");
}

#[test]
fn masks_become_cores() {
    let mut mask = [0; CORES_MAX / 8];
    assert!(cores(&mask).is_empty());
    (mask[0], mask[7], mask[8], mask[CORES_MAX / 8 - 1]) = (0b101, 0x80, 1, 0x80);
    assert_eq!(cores(&mask), [0, 2, 63, 64, 8191]);
}

#[test]
fn devices_are_those_with_a_number() {
    let folder = tempfile::tempdir().unwrap();
    assert!(devices_in(&folder.path().join("absent")).unwrap().is_empty());
    for name in ["ublkc10", "ublkc2", "ublkc", "ublkcx", "ublkb1", "other"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    assert_eq!(devices_in(folder.path()).unwrap(), [2, 10]);
    assert!(devices_in(&folder.path().join("ublkc")).unwrap().is_empty());
}

#[test]
fn a_node_that_comes_later_is_waited_for_and_other_refusals_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let node = folder.path().join("node");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| open_node(&node));
        while !waiting.is_finished() {
            // Any time after the first attempt will do.
            std::thread::park_timeout(Duration::from_millis(20));
            fs::write(&node, "").unwrap();
        }
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(open_node(folder.path()).unwrap_err().raw_os_error(), Some(libc::EISDIR));
    assert_eq!(open_node(&folder.path().join("never")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn without_a_driver_there_is_nothing_to_control() {
    if Path::new(crate::sys::ublk_control::CONTROL_DEVICE).exists() {
        return;
    }
    let missing = Control::open().err().map(|error| error.to_string());
    assert_eq!(missing.as_deref(), Some("the kernel has no ublk: modprobe ublk_drv (CONFIG_BLK_DEV_UBLK)"));
    assert!(devices().unwrap().is_empty());
}
