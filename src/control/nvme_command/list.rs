//! `reactor nvme list`: what /sys tells of each disk, and what its server says.

use serde_json::{Value, json};

use super::find::{Found, Holder, Place};
use crate::control::table::{dash, lay_out, or_dash};

/// A disk and its users.
pub type Row = (Found, Vec<String>);

/// All disks with their users.
pub fn rows(place: &Place) -> Vec<Row> {
    super::find::all(place)
        .into_iter()
        .map(|found| {
            let users = found.users(place);
            (found, users)
        })
        .collect()
}

/// One object for scripts.
pub fn to_json(rows: &[Row]) -> Value {
    json!({ "disks": rows.iter().map(one).collect::<Vec<_>>() })
}

fn one((found, users): &Row) -> Value {
    let function = &found.function;
    let (model, firmware) = model_and_firmware(found);
    let held = found.holder.as_ref().map(|holder| match holder {
        Holder::Server(owned) | Holder::Perhaps(owned) => json!({
            "pid": owned.pid,
            "config": owned.config,
            "socket": owned.socket,
            "verified": matches!(holder, Holder::Server(_)),
        }),
        Holder::Processes(all) => json!({
            "pid": all.first().map(|(process, _)| process), "config": null, "socket": null, "verified": true,
        }),
    });
    json!({
        "address": function.address.to_string(),
        "controller": function.identity.as_ref().map(|identity| &identity.controller),
        "serial": found.serial(),
        "model": model,
        "firmware": firmware,
        "driver": function.driver,
        "iommu_group": function.group.as_ref().map(|group| group.number),
        "numa_node": function.numa_node,
        "held_by": held,
        "users": users,
        "namespaces": namespaces(found),
    })
}

fn namespaces(found: &Found) -> Vec<Value> {
    let kernel = found.namespaces.iter().map(|one| {
        json!({
            "nsid": one.nsid,
            "disk": one.disk,
            "bytes": one.bytes,
            "block_size": one.block_size,
            "metadata": one.metadata,
            "zoned": one.zoned,
            "volume": null,
        })
    });
    let owned = found.holder.as_ref().and_then(Holder::owned).into_iter().flat_map(|owned| &owned.namespaces);
    let owned = owned.map(|one| {
        json!({
            "nsid": one.nsid,
            "disk": null,
            "bytes": one.bytes,
            "block_size": one.block_size,
            "metadata": one.bytes.map(|_| 0),
            "zoned": one.zoned,
            "volume": one.volume,
        })
    });
    kernel.chain(owned).collect()
}

fn model_and_firmware(found: &Found) -> (Option<&str>, Option<&str>) {
    if let Some(identity) = &found.function.identity {
        return (Some(&identity.model), Some(&identity.firmware));
    }
    let owned = found.holder.as_ref().and_then(Holder::owned);
    (owned.map(|owned| owned.model.as_str()), owned.map(|owned| owned.firmware.as_str()))
}

/// A line for each disk.
pub fn to_table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "this machine has no NVMe disk\n".to_owned();
    }
    let head = ["ADDRESS", "SERIAL", "MODEL", "DRIVER", "GROUP", "NODE", "SIZE", "BLOCK", "NAMESPACES", "USED BY"];
    let lines: Vec<[String; 10]> = std::iter::once(head.map(str::to_owned)).chain(rows.iter().map(line)).collect();
    lay_out(&lines)
}

/// A dash where nothing is known, or nobody is there.
fn line((found, users): &Row) -> [String; 10] {
    let text = |text: Option<&str>| text.filter(|text| !text.is_empty()).map_or_else(dash, str::to_owned);
    let number = |number: Option<u32>| number.map_or_else(dash, |number| number.to_string());
    let function = &found.function;
    let owned = found.holder.as_ref().and_then(Holder::owned);
    let theirs = || owned.into_iter().flat_map(|owned| &owned.namespaces);
    let bytes: Vec<u64> =
        found.namespaces.iter().map(|one| one.bytes).chain(theirs().filter_map(|one| one.bytes)).collect();
    let mut blocks: Vec<u32> =
        found.namespaces.iter().map(|one| one.block_size).chain(theirs().filter_map(|one| one.block_size)).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let namespaces = found.namespaces.iter().map(|one| one.disk.clone()).chain(theirs().map(|one| match &one.volume {
        Some(volume) => format!("{} \"{volume}\"", one.nsid),
        None => one.nsid.to_string(),
    }));
    let holder = found.holder.iter().map(Holder::name);
    [
        function.address.to_string(),
        text(found.serial()),
        text(model_and_firmware(found).0),
        text(function.driver.as_deref()),
        number(function.group.as_ref().map(|group| group.number)),
        number(function.numa_node),
        if bytes.is_empty() { dash() } else { rounded(bytes.iter().sum()) },
        or_dash(blocks.iter().map(u32::to_string).collect()),
        or_dash(namespaces.collect()),
        or_dash(holder.chain(users.iter().cloned()).collect()),
    ]
}

/// As disks are sold and people say it, in three digits.
fn rounded(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if size < 1024.0 {
            let digits = usize::from(size < 99.95 && size.fract() >= 0.05);
            return format!("{size:.digits$} {unit}");
        }
        size /= 1024.0;
    }
    format!("{size:.1} PiB")
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::owned;
    use super::*;
    use crate::sys::pci::{Group, Identity, KernelNamespace};

    fn found(address: &str, driver: Option<&str>) -> Found {
        let address = address.parse().unwrap();
        let group = Group { number: 12, is_unsafe: false, functions: Vec::new(), reserved: Vec::new() };
        let function = crate::sys::pci::Function {
            address,
            id: (0x1b36, 0x10),
            subsystem: (0, 0),
            numa_node: Some(0),
            driver: driver.map(str::to_owned),
            group: Some(group),
            identity: None,
        };
        Found { function, namespaces: Vec::new(), holder: None }
    }

    fn three() -> Vec<Row> {
        let mut kernel = found("0000:01:00.0", Some("nvme"));
        let text = str::to_owned;
        let (controller, serial, model, firmware) = (text("nvme0"), text("S1"), text("A disk"), text("7.1"));
        kernel.function.identity = Some(Identity { controller, serial, model, firmware });
        kernel.namespaces = vec![KernelNamespace {
            nsid: 1,
            disk: text("nvme0n1"),
            bytes: 1_920_383_410_176,
            block_size: 512,
            metadata: 0,
            zoned: false,
        }];
        let mut served = found("0000:02:00.0", Some("vfio-pci"));
        served.holder = Some(Holder::Server(owned(812)));
        let mut none = found("0000:03:00.0", None);
        (none.function.group, none.function.numa_node) = (None, None);
        vec![(kernel, vec![text("nvme0n1: mount /data")]), (served, Vec::new()), (none, Vec::new())]
    }

    #[test]
    fn the_table_has_a_line_for_each_disk() {
        assert_eq!(
            to_table(&three()),
            "ADDRESS       SERIAL  MODEL   DRIVER    GROUP  NODE  SIZE     BLOCK  NAMESPACES    USED BY\n\
             0000:01:00.0  S1      A disk  nvme      12     0     1.7 TiB  512    nvme0n1       nvme0n1: mount /data\n\
             0000:02:00.0  S2      Fast    vfio-pci  12     0     1 GiB    4096   1 \"disk0\", 2  process 812 (reactor, /etc/poll.toml)\n\
             0000:03:00.0  -       -       -         -      -     -        -      -             -\n"
        );
        assert_eq!(to_table(&[]), "this machine has no NVMe disk\n");
    }

    #[test]
    fn json_has_all_that_is_known() {
        let value = to_json(&three());
        let expected = json!({
            "address": "0000:01:00.0", "controller": "nvme0", "serial": "S1", "model": "A disk", "firmware": "7.1",
            "driver": "nvme", "iommu_group": 12, "numa_node": 0, "held_by": null, "users": ["nvme0n1: mount /data"],
            "namespaces": [{
                "nsid": 1, "disk": "nvme0n1", "bytes": 1_920_383_410_176_u64, "block_size": 512, "metadata": 0, "zoned": false,
                "volume": null,
            }],
        });
        assert_eq!(value["disks"][0], expected);
        let expected = json!({
            "address": "0000:02:00.0", "controller": null, "serial": "S2", "model": "Fast", "firmware": "2.0",
            "driver": "vfio-pci", "iommu_group": 12, "numa_node": 0, "users": [],
            "held_by": { "pid": 812, "config": "/etc/poll.toml", "socket": "/run/reactor/poll.sock", "verified": true },
            "namespaces": [
                { "nsid": 1, "disk": null, "bytes": 1 << 30, "block_size": 4096, "metadata": 0, "zoned": false, "volume": "disk0" },
                { "nsid": 2, "disk": null, "bytes": null, "block_size": null, "metadata": null, "zoned": false, "volume": null },
            ],
        });
        assert_eq!(value["disks"][1], expected);
        assert_eq!((&value["disks"][2]["serial"], &value["disks"][2]["held_by"]), (&Value::Null, &Value::Null));
        assert_eq!(value["disks"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn sizes_are_rounded_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1536, "1.5 KiB"),
            (64 << 20, "64 MiB"),
            (1 << 40, "1 TiB"),
            (3 << 50, "3.0 PiB"),
        ] {
            assert_eq!(rounded(bytes), text);
        }
    }
}
