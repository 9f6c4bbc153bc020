//! A machine with a disk of the kernel's driver, which has two namespaces, and one of vfio-pci.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::find::{Place, all, meant};
use super::state::Files;
use super::state::tests::owned;
use super::*;
use crate::sys::holders::Machine;
use crate::sys::pci::Pci;

const DISK: &str = "0000:01:00.0";
const BOUND: &str = "0000:02:00.0";

struct Fake(tempfile::TempDir);

impl Fake {
    fn new() -> Fake {
        let fake = Fake(tempfile::tempdir().unwrap());
        for driver in ["nvme", "vfio-pci"] {
            fs::create_dir_all(fake.0.path().join("sys/bus/pci/drivers").join(driver)).unwrap();
        }
        fake.function(DISK, 12, "nvme");
        fake.function(BOUND, 13, "vfio-pci");
        let controller = format!("sys/bus/pci/devices/{DISK}/nvme/nvme0");
        for (file, text) in [("serial", "S1"), ("model", "A disk"), ("firmware_rev", "7.1")] {
            fake.write(&format!("{controller}/{file}"), text);
        }
        for (number, nsid) in [(3, "1"), (4, "2")] {
            let disk = format!("sys/block/nvme0n{nsid}");
            fake.write(&format!("{controller}/nvme0n{nsid}/x"), "");
            for (file, text) in [("nsid", nsid), ("size", "2048"), ("queue/logical_block_size", "512")] {
                fake.write(&format!("{disk}/{file}"), text);
            }
            fake.write(&format!("{disk}/dev"), &format!("259:{number}\n"));
        }
        fake.write("sys/class/nvme/nvme0/dev", "246:0\n");
        fake.write("sys/block/nvme0n1/nvme0n1p1/dev", "259:9\n");
        fake.write("sys/block/nvme0n1/nvme0n1p1/partition", "1\n");
        fake.write("proc/812/comm", "reactor\n");
        fake.link("proc/812/fd/9", "/dev/null");
        fake
    }

    fn function(&self, address: &str, group: u32, driver: &str) {
        let folder = format!("sys/bus/pci/devices/{address}");
        self.write(&format!("{folder}/class"), "0x010802");
        self.write(&format!("{folder}/driver_override"), "(null)");
        self.link(&format!("{folder}/iommu_group"), &format!("../../../../kernel/iommu_groups/{group}"));
        self.link(&format!("sys/kernel/iommu_groups/{group}/devices/{address}"), "elsewhere");
        self.link(&format!("{folder}/driver"), &format!("../../../../bus/pci/drivers/{driver}"));
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, to: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }

    fn place(&self) -> Place {
        let number = |path: &Path| {
            let name = fs::read_link(path).unwrap_or_else(|_| path.to_path_buf());
            let number = match name.to_str()? {
                "/dev/nvme0n1" => "259:3",
                "/dev/nvme0n1p1" => "259:9",
                "/dev/nvme0n2" => "259:4",
                "/dev/nvme0" => "char 246:0",
                _ => "8:0",
            };
            Some(number.to_owned())
        };
        // A claim that leaves no other trace is a file beside the folder of the disk.
        let is_claimed = |_: &Path, folder: &Path| folder.join("claimed").exists();
        Place { pci: Pci::at(self.0.path(), kernel), machine: Machine::at(self.0.path(), number), is_claimed }
    }

    fn driver(&self, address: &str) -> String {
        self.place().pci.driver(address.parse().unwrap()).unwrap_or_default()
    }

    fn run(&self, options: &NvmeOptions) -> Result<String, String> {
        carry_out(&self.place(), options)
    }

    fn bind(&self, device: &str, force: bool) -> Result<String, String> {
        self.run(&NvmeOptions::Bind { device: device.to_owned(), force, json: false })
    }

    fn unbind(&self, device: &str) -> Result<String, String> {
        self.run(&NvmeOptions::Unbind { device: device.to_owned(), force: false, json: false })
    }

    /// Process 812 holds the bound disk, and says so.
    fn serve(&self) -> Files {
        self.link("proc/812/fd/10", "/dev/vfio/13");
        self.serve_file()
    }

    fn serve_file(&self) -> Files {
        let mut files = Files::new(&self.place().pci);
        files.publish(vec![(BOUND.parse().unwrap(), owned(812))]);
        files
    }
}

/// What the kernel does with what is written.
fn kernel(path: &Path, text: &str) -> io::Result<()> {
    let root = path.ancestors().find(|path| path.join("proc").is_dir()).unwrap();
    let devices = root.join("sys/bus/pci/devices");
    match path.file_name().unwrap().to_str().unwrap() {
        "driver_override" => fs::write(path, if text == "\n" { "(null)\n" } else { text }),
        "unbind" => fs::remove_file(devices.join(text).join("driver")),
        _ => {
            let wanted = fs::read_to_string(devices.join(text).join("driver_override")).unwrap();
            let driver = if wanted.trim() == "(null)" { "nvme" } else { wanted.trim() };
            symlink(root.join("sys/bus/pci/drivers").join(driver), devices.join(text).join("driver"))
        }
    }
}

#[test]
fn a_disk_is_found_by_all_its_names() {
    let fake = Fake::new();
    let _files = fake.serve();
    let place = fake.place();
    for (name, address, nsid) in [
        (DISK, DISK, None),
        ("01:00.0", DISK, None),
        ("S1", DISK, None),
        ("nvme0", DISK, None),
        ("/dev/nvme0", DISK, None),
        ("nvme0n2", DISK, Some(2)),
        ("/dev/nvme0n1", DISK, Some(1)),
        (BOUND, BOUND, None),
        ("S2", BOUND, None),
        ("disk0", BOUND, Some(1)),
    ] {
        let found = meant(&place, name).unwrap();
        assert_eq!((found.disk.address().to_string().as_str(), found.nsid), (address, nsid), "{name}");
    }
    let error = meant(&place, "nvme0n1p1").unwrap_err();
    assert_eq!(
        error,
        "no NVMe disk is \"nvme0n1p1\": this machine has 0000:01:00.0 (serial S1), 0000:02:00.0 (serial S2)"
    );
    assert!(meant(&place, "0000:09:00.0").unwrap_err().starts_with("no NVMe disk at 0000:09:00.0: this machine has "));
}

#[test]
fn a_disk_that_nobody_holds_is_named_by_its_address() {
    let fake = Fake::new();
    let error = meant(&fake.place(), "S2").unwrap_err();
    assert!(error.ends_with("no server holds, is named by its address alone"), "{error}");
}

#[test]
fn controllers_of_one_serial_are_told_apart_by_address() {
    let fake = Fake::new();
    fake.function("0000:03:00.0", 14, "nvme");
    fake.write("sys/bus/pci/devices/0000:03:00.0/nvme/nvme1/serial", "S1");
    let error = meant(&fake.place(), "S1").unwrap_err();
    assert_eq!(error, "\"S1\" is several controllers: write one of 0000:01:00.0, 0000:03:00.0");
}

#[test]
fn bind_takes_a_free_disk_and_unbind_gives_it_back() {
    let fake = Fake::new();
    assert_eq!(fake.bind("S1", false).unwrap(), "0000:01:00.0 is bound to vfio-pci; it was with nvme\n");
    assert_eq!(fake.driver(DISK), "vfio-pci");
    assert_eq!(fake.bind(DISK, false).unwrap(), "0000:01:00.0 is bound to vfio-pci already\n");
    assert_eq!(fake.unbind(DISK).unwrap(), "0000:01:00.0 is bound to nvme; it was with vfio-pci\n");
    assert_eq!(fake.driver(DISK), "nvme");
    let json = fake.run(&NvmeOptions::Bind { device: DISK.to_owned(), force: false, json: true }).unwrap();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let expected = serde_json::json!({
        "address": DISK, "from": "nvme", "driver": "vfio-pci", "changed": true, "note": null,
    });
    assert_eq!(value, expected);
}

#[test]
fn bind_takes_no_disk_from_a_driver_that_does_not_say_who_uses_it() {
    let fake = Fake::new();
    fs::create_dir_all(fake.0.path().join("sys/bus/pci/drivers/uio_pci_generic")).unwrap();
    fake.function("0000:03:00.0", 14, "uio_pci_generic");
    let error = fake.bind("0000:03:00.0", false).unwrap_err();
    let says =
        "0000:03:00.0 belongs to uio_pci_generic, and whether it is in use there cannot be seen: nothing is changed";
    assert!(error.starts_with(says), "{error}");
    assert_eq!(fake.driver("0000:03:00.0"), "uio_pci_generic");
    fake.bind("0000:03:00.0", true).unwrap();
    assert_eq!(fake.driver("0000:03:00.0"), "vfio-pci");
}

#[test]
fn no_name_is_no_disk() {
    let fake = Fake::new();
    // Its serial number cannot be read.
    fake.write(&format!("sys/bus/pci/devices/{DISK}/nvme/nvme0/serial"), "");
    assert!(fake.bind("", true).unwrap_err().contains("without a name"));
    assert_eq!(fake.driver(DISK), "nvme");
}

#[test]
fn bind_refuses_a_disk_in_use_and_names_who_uses_it() {
    let mount = |source: &str, number: &str| format!("22 1 {number} / /data rw - ext4 {source} rw\n");
    for (path, text, who) in [
        ("proc/self/mountinfo", mount("/dev/nvme0n1", "259:3"), "nvme0n1: mount /data"),
        ("proc/self/mountinfo", mount("/dev/nvme0n1p1", "259:9"), "nvme0n1: mount /data"),
        ("proc/swaps", "Filename Type\n/dev/nvme0n2 partition 1 0 -2\n".to_owned(), "nvme0n2: swap /dev/nvme0n2"),
        ("sys/block/nvme0n1/nvme0n1p1/holders/dm-0", String::new(), "nvme0n1: device dm-0"),
        ("sys/block/nvme0n2/claimed", String::new(), "nvme0n2: by whom could not be seen"),
    ] {
        let fake = Fake::new();
        fake.write(path, &text);
        let error = fake.bind(DISK, false).unwrap_err();
        let says = format!("0000:01:00.0 is in use: {who}: nothing is changed; --force does it all the same");
        assert_eq!(error, says);
        assert_eq!(fake.driver(DISK), "nvme", "{who}");
        fake.bind(DISK, true).unwrap();
        assert_eq!(fake.driver(DISK), "vfio-pci", "{who}");
    }
    for (to, who) in [("/dev/nvme0n2", "nvme0n2"), ("/dev/nvme0", "nvme0")] {
        let fake = Fake::new();
        fake.write("proc/97/comm", "fio\n");
        fake.link("proc/97/fd/3", to);
        let error = fake.bind(DISK, false).unwrap_err();
        assert!(error.contains(&format!(" is in use: {who}: process 97 (fio): nothing is changed")), "{error}");
    }
}

#[test]
fn a_function_that_stays_in_the_way_of_its_group_is_told() {
    let fake = Fake::new();
    fake.function("0000:01:00.1", 12, "snd_hda_intel");
    fake.write("sys/bus/pci/devices/0000:01:00.1/class", "0x040300");
    let text = fake.bind(DISK, false).unwrap();
    assert!(
        text.contains("\ngroup 12 has functions that other drivers have: 0000:01:00.1 (snd_hda_intel): "),
        "{text}"
    );
}

#[test]
fn who_holds_a_disk_is_seen_and_keeps_it() {
    let fake = Fake::new();
    fake.link("proc/812/fd/10", "/dev/vfio/13");
    let name = |fake: &Fake| all(&fake.place())[1].holder.as_ref().map(|holder| holder.name());
    assert_eq!(name(&fake).unwrap(), "process 812 (reactor)", "it has written nothing");
    let files = fake.serve_file();
    assert_eq!(name(&fake).unwrap(), "process 812 (reactor, /etc/poll.toml)");
    let error = fake.unbind(BOUND).unwrap_err();
    assert!(
        error.starts_with("process 812 (reactor, /etc/poll.toml): its control socket /run/reactor/poll.sock: "),
        "{error}"
    );
    assert_eq!(fake.driver(BOUND), "vfio-pci");
    fs::remove_file(fake.0.path().join("proc/812/fd/10")).unwrap();
    assert_eq!(name(&fake), None, "a file that a killed server has left");
    drop(files);
    fake.unbind(BOUND).unwrap();
    assert_eq!(fake.driver(BOUND), "nvme");
}

#[test]
fn a_list_is_made_of_it_all() {
    let fake = Fake::new();
    let _files = fake.serve();
    let text = fake.run(&NvmeOptions::List { json: false }).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[1].starts_with("0000:01:00.0  S1      A disk  nvme      12     -     2 MiB"), "{text}");
    assert!(lines[2].ends_with("1 \"disk0\", 2      process 812 (reactor, /etc/poll.toml)"), "{text}");
    let json = fake.run(&NvmeOptions::List { json: true }).unwrap();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["disks"][0]["namespaces"][1]["disk"], "nvme0n2");
    assert_eq!(value["disks"][1]["held_by"]["pid"], 812);
}
