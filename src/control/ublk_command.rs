//! `reactor ublk`: the local block devices of this machine, for people and scripts.

use std::io::{self, Write};
use std::process::ExitCode;

use super::cli::UblkOptions;
use super::serve::FAILED;
use super::table::{dash, lay_out, or_dash};
use crate::ublk::{Deleted, Found, Survey};

/// Runs the command and prints its result; the exit code of the process.
pub fn run(options: &UblkOptions) -> ExitCode {
    match carry_out(options) {
        Ok(text) => match io::stdout().lock().write_all(text.as_bytes()) {
            // Whoever reads it has enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(&error.to_string()),
            _ => ExitCode::SUCCESS,
        },
        Err(why) => fail(&why),
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("reactor ublk: {why}");
    ExitCode::from(FAILED)
}

fn carry_out(options: &UblkOptions) -> Result<String, String> {
    let mut survey = Survey::open().map_err(|error| error.to_string())?;
    match options {
        UblkOptions::List { json } => {
            let devices = survey.list().map_err(|error| error.to_string())?;
            Ok(if *json { to_json(&devices) } else { to_table(&devices) })
        }
        UblkOptions::Delete { device, force } => {
            survey.delete(device, *force).map(|deleted| told(&deleted)).map_err(|error| error.to_string())
        }
    }
}

fn told(deleted: &Deleted) -> String {
    let Deleted { id, gone, users } = deleted;
    if *gone {
        return format!("/dev/ublkb{id} is deleted\n");
    }
    let users = if users.is_empty() { String::new() } else { format!(": {}", users.join(", ")) };
    format!("/dev/ublkb{id} is deleted; its number is free when the last of its users has closed it{users}\n")
}

fn to_json(devices: &[Found]) -> String {
    let device = |found: &Found| {
        let identity = found.identity.as_ref();
        serde_json::json!({
            "id": found.id,
            "path": found.path(),
            "volume": identity.map(|identity| identity.volume()),
            "uuid": identity.map(|identity| identity.uuid().to_string()),
            "backing": identity.map(|identity| identity.backing()),
            "config": identity.map(|identity| identity.server()),
            "state": found.state_name(),
            "server": found.server.map(|pid| serde_json::json!({ "pid": pid, "alive": found.alive })),
            "holders": found.holders,
        })
    };
    let value = serde_json::json!({ "devices": devices.iter().map(device).collect::<Vec<_>>() });
    format!("{value}\n")
}

fn to_table(devices: &[Found]) -> String {
    if devices.is_empty() {
        return "no reactor has a local block device on this machine\n".to_owned();
    }
    let head = ["DEVICE", "VOLUME", "STATE", "SERVER", "USED BY", "CONFIGURATION"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(devices.iter().map(row)).collect();
    lay_out(&rows)
}

/// A dash where nothing is known, or nobody is there.
fn row(found: &Found) -> [String; 6] {
    let identity = found.identity.as_ref();
    let server = match (found.server, found.alive) {
        (Some(pid), true) => pid.to_string(),
        (Some(pid), false) => format!("{pid} (gone)"),
        (None, _) => dash(),
    };
    [
        found.path(),
        identity.map_or_else(dash, |identity| identity.volume().to_owned()),
        found.state_name().to_owned(),
        server,
        or_dash(found.holders.clone()),
        identity.map_or_else(dash, |identity| identity.server().to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::ublk::Identity;
    use crate::ublk::wire::DevState;

    fn two() -> [Found; 2] {
        let identity = Identity::new("/etc/poll.toml", "disk0", Uuid::from_u128(7), "file /srv/disk0.img");
        [
            Found {
                id: 0,
                identity: Some(identity),
                state: DevState::QUIESCED,
                server: Some(812),
                alive: false,
                holders: vec!["mount /mnt".to_owned(), "process 9 (dd)".to_owned()],
            },
            Found { id: 12, identity: None, state: DevState::DEAD, server: None, alive: false, holders: Vec::new() },
        ]
    }

    #[test]
    fn the_table_has_a_line_for_each_device() {
        assert_eq!(
            to_table(&two()),
            "DEVICE        VOLUME  STATE     SERVER      USED BY                     CONFIGURATION\n\
             /dev/ublkb0   disk0   quiesced  812 (gone)  mount /mnt, process 9 (dd)  /etc/poll.toml\n\
             /dev/ublkb12  -       dead      -           -                           -\n"
        );
        assert_eq!(to_table(&[]), "no reactor has a local block device on this machine\n");
    }

    #[test]
    fn json_has_all_that_is_known() {
        let expected = serde_json::json!({ "devices": [
            {
                "id": 0,
                "path": "/dev/ublkb0",
                "volume": "disk0",
                "uuid": "00000000-0000-0000-0000-000000000007",
                "backing": "file /srv/disk0.img",
                "config": "/etc/poll.toml",
                "state": "quiesced",
                "server": { "pid": 812, "alive": false },
                "holders": ["mount /mnt", "process 9 (dd)"],
            },
            {
                "id": 12,
                "path": "/dev/ublkb12",
                "volume": null,
                "uuid": null,
                "backing": null,
                "config": null,
                "state": "dead",
                "server": null,
                "holders": [],
            },
        ] });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&to_json(&two())).unwrap(), expected);
    }

    #[test]
    fn a_deletion_says_what_is_still_open() {
        let users = vec!["mount /mnt".to_owned()];
        assert_eq!(told(&Deleted { id: 3, gone: true, users: users.clone() }), "/dev/ublkb3 is deleted\n");
        let unseen = told(&Deleted { id: 3, gone: false, users: Vec::new() });
        assert!(unseen.ends_with("when the last of its users has closed it\n"), "{unseen}");
        let open = told(&Deleted { id: 3, gone: false, users });
        assert_eq!(
            open,
            "/dev/ublkb3 is deleted; its number is free when the last of its users has closed it: mount /mnt\n"
        );
    }
}
