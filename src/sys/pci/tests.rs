use std::os::unix::fs::symlink;

use super::*;

const DISK: &str = "0000:01:00.0";
const SIBLING: &str = "0000:01:00.1";

/// A machine with a disk of the kernel's driver and another function in one group, a disk of vfio-pci, and a network card.
struct Fake(tempfile::TempDir);

impl Fake {
    fn new() -> Fake {
        let fake = Fake(tempfile::tempdir().unwrap());
        for driver in ["nvme", "vfio-pci", "snd_hda_intel"] {
            fs::create_dir_all(fake.path("sys/bus/pci/drivers").join(driver)).unwrap();
        }
        fake.function(DISK, "0x010802", 12, Some("nvme"));
        fake.function(SIBLING, "0x040300", 12, Some("snd_hda_intel"));
        fake.function("0000:02:00.0", "0x010802", 13, Some("vfio-pci"));
        fake.function("0000:03:00.0", "0x020000", 14, None);
        fake.write("sys/bus/pci/devices/0000:01:00.0/numa_node", "1\n");
        fake.write("sys/bus/pci/devices/0000:02:00.0/numa_node", "-1\n");
        let controller = "sys/bus/pci/devices/0000:01:00.0/nvme/nvme0";
        fake.write(&format!("{controller}/serial"), "S1                  \n");
        fake.write(&format!("{controller}/model"), "A disk \n");
        fake.write(&format!("{controller}/firmware_rev"), "7.1\n");
        let regions = "0x00000000fee00000 0x00000000feefffff msi\n";
        fake.write("sys/kernel/iommu_groups/12/reserved_regions", regions);
        let more = format!("0x0000000000000000 0x0000000000ffffff direct\n{regions}");
        fake.write("sys/kernel/iommu_groups/13/reserved_regions", &more);
        fake.write("proc/812/comm", "reactor\n");
        fake.write("proc/97/comm", "fio\n");
        fake.link("proc/97/fd/3", "/dev/vfio/vfio");
        fake
    }

    fn function(&self, address: &str, class: &str, group: u32, driver: Option<&str>) {
        let folder = format!("sys/bus/pci/devices/{address}");
        for (file, text) in [
            ("class", class),
            ("vendor", "0x1b36"),
            ("device", "0x0010"),
            ("subsystem_vendor", "0x1af4"),
            ("subsystem_device", "0x1100"),
            ("driver_override", NO_OVERRIDE),
        ] {
            self.write(&format!("{folder}/{file}"), &format!("{text}\n"));
        }
        self.link(&format!("{folder}/iommu_group"), &format!("../../../../kernel/iommu_groups/{group}"));
        self.link(&format!("sys/kernel/iommu_groups/{group}/devices/{address}"), "elsewhere");
        if let Some(driver) = driver {
            self.link(&format!("{folder}/driver"), &format!("../../../../bus/pci/drivers/{driver}"));
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, to: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }

    fn pci(&self) -> Pci {
        Pci::at(self.0.path(), kernel)
    }

    fn disk(&self) -> Function {
        self.pci().function(DISK.parse().unwrap()).unwrap()
    }

    fn driver(&self) -> Option<String> {
        self.pci().driver(DISK.parse().unwrap())
    }

    fn override_of(&self) -> String {
        text(&self.path("sys/bus/pci/devices/0000:01:00.0/driver_override")).unwrap()
    }
}

/// What the kernel does with what is written. A file `refuses` in the root names what fails: words of paths with an error's number;
/// `vfio-fails`: vfio-pci does not take what it is given, nor does it let go; `nvme-fails`: nvme does not take it.
fn kernel(path: &Path, text: &str) -> io::Result<()> {
    let root = path.ancestors().find(|path| path.join("proc").is_dir()).unwrap();
    for line in fs::read_to_string(root.join("refuses")).unwrap_or_default().lines() {
        let (word, errno) = line.split_once(' ').unwrap();
        if path.ends_with(word) {
            return Err(io::Error::from_raw_os_error(errno.parse().unwrap()));
        }
    }
    let devices = root.join("sys/bus/pci/devices");
    match path.file_name().unwrap().to_str().unwrap() {
        "driver_override" => {
            assert!(text.ends_with('\n'), "a write of nothing changes nothing");
            fs::write(path, if text == "\n" { "(null)\n" } else { text })
        }
        "unbind" => {
            if !root.join("clings").exists() {
                fs::remove_file(devices.join(text).join("driver"))?;
            }
            Ok(())
        }
        "drivers_probe" => {
            let folder = devices.join(text);
            let wanted = fs::read_to_string(folder.join("driver_override")).unwrap();
            let driver = if wanted.trim() == NO_OVERRIDE { "nvme" } else { wanted.trim() };
            if !root.join(format!("{driver}-fails")).exists() && !folder.join("driver").exists() {
                symlink(root.join("sys/bus/pci/drivers").join(driver), folder.join("driver"))?;
            }
            Ok(())
        }
        other => panic!("nobody writes {other}"),
    }
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

#[test]
fn addresses_are_read_as_they_are_written() {
    for text in ["0000:01:00.0", "0000:ff:1f.7", "10000:e1:00.0", "ffffffff:00:00.0"] {
        assert_eq!(address(text).to_string(), text);
    }
    assert_eq!(address("01:00.0"), address("0000:01:00.0"));
    for text in ["", "0000:01:00", "0000:01:00.8", "0000:01:20.0", "1:00.0", "000:01:00.0", "0000:01:00.0 ", "+0:0:0.0"]
    {
        assert_eq!(text.parse::<Address>(), Err(AddressError(text.to_owned())), "{text}");
    }
}

#[test]
fn a_scan_finds_controllers_and_what_is_known_of_them() {
    let fake = Fake::new();
    let found = fake.pci().functions();
    let range = |start, end| AddressRange { start, end };
    let msi = range(0xfee0_0000, 0xfeef_ffff);
    let identity = Identity {
        controller: "nvme0".to_owned(),
        serial: "S1".to_owned(),
        model: "A disk".to_owned(),
        firmware: "7.1".to_owned(),
    };
    let named = |name: &str| Some(name.to_owned());
    let disk = Function {
        address: address(DISK),
        id: (0x1b36, 0x10),
        subsystem: (0x1af4, 0x1100),
        numa_node: Some(1),
        driver: named("nvme"),
        group: Some(Group {
            number: 12,
            is_unsafe: false,
            functions: vec![(address(DISK), named("nvme")), (address(SIBLING), named("snd_hda_intel"))],
            reserved: vec![msi],
        }),
        identity: Some(identity),
    };
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[0], disk);
    assert_eq!((found[1].address, found[1].numa_node, found[1].is_vfio()), (address("0000:02:00.0"), None, true));
    assert_eq!(found[1].identity, None);
    assert_eq!(fake.pci().reserved_regions(), [range(0, 0xff_ffff), msi], "each once, of all groups");
    let group = found[0].group.as_ref().unwrap();
    assert_eq!(group.in_the_way(address(DISK)), [(address(SIBLING), "snd_hda_intel".to_owned())]);
    assert_eq!(group.in_the_way(address(SIBLING)), [(address(DISK), "nvme".to_owned())]);
    assert_eq!(found[1].group.as_ref().unwrap().in_the_way(address("0000:09:00.0")), [], "vfio-pci is in nobody's way");
}

#[test]
fn a_group_of_the_unsafe_mode_is_known() {
    let fake = Fake::new();
    fake.write("sys/kernel/iommu_groups/12/name", "vfio-noiommu\n");
    assert!(fake.disk().group.unwrap().is_unsafe);
}

#[test]
fn a_disk_goes_to_vfio_and_back() {
    let fake = Fake::new();
    let taken = fake.pci().bind(&fake.disk()).unwrap();
    assert_eq!(taken, Handover { from: Some("nvme".to_owned()), to: "vfio-pci".to_owned() });
    assert!(taken.is_change());
    assert_eq!((fake.driver().unwrap(), fake.override_of()), ("vfio-pci".to_owned(), "vfio-pci".to_owned()));
    assert!(!fake.pci().bind(&fake.disk()).unwrap().is_change(), "it is so already");
    let back = fake.pci().unbind(&fake.disk()).unwrap();
    assert_eq!(back, Handover { from: Some("vfio-pci".to_owned()), to: "nvme".to_owned() });
    assert_eq!((fake.driver().unwrap(), fake.override_of()), ("nvme".to_owned(), NO_OVERRIDE.to_owned()));
    assert!(!fake.pci().unbind(&fake.disk()).unwrap().is_change());
}

#[test]
fn a_disk_without_a_driver_can_be_bound_to_either() {
    for (to_vfio, wanted) in [(true, "vfio-pci"), (false, "nvme")] {
        let fake = Fake::new();
        fs::remove_file(fake.path("sys/bus/pci/devices/0000:01:00.0/driver")).unwrap();
        let (pci, disk) = (fake.pci(), fake.disk());
        let done = if to_vfio { pci.bind(&disk) } else { pci.unbind(&disk) };
        assert_eq!(done.unwrap(), Handover { from: None, to: wanted.to_owned() });
    }
}

#[test]
fn a_step_that_fails_is_undone() {
    // Each of the places where taking a disk may fail, and what is said.
    for (file, text, says) in [
        ("refuses", "driver_override 22", "cannot write `vfio-pci` to"),
        ("refuses", "driver/unbind 16", "driver/unbind: Device or resource busy (os error 16)"),
        ("refuses", "drivers_probe 13", "no right to write"),
        ("refuses", "driver/unbind 13", "no right to write"),
        ("clings", "", "nvme does not let go of it"),
        ("vfio-pci-fails", "", "no driver has it instead of vfio-pci: the kernel's log says why (dmesg)"),
    ] {
        let fake = Fake::new();
        fake.write(file, text);
        let error = fake.pci().bind(&fake.disk()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(fake.override_of(), NO_OVERRIDE, "{error}");
        let gone = text == "drivers_probe 13";
        assert_eq!(fake.driver().as_deref(), if gone { None } else { Some("nvme") }, "{error}");
        let ends = if gone { "this could not be undone: nvme had it, no driver has it now" } else { "" };
        assert!(error.ends_with(ends), "{error}");
    }
}

#[test]
fn what_the_kernel_does_not_take_back_stays_with_vfio() {
    let fake = Fake::new();
    fake.pci().bind(&fake.disk()).unwrap();
    fake.write("nvme-fails", "");
    let error = fake.pci().unbind(&fake.disk()).unwrap_err().to_string();
    let says = "0000:01:00.0: no driver has it instead of its kernel driver: the kernel's log says why (dmesg); \
                nothing is changed, vfio-pci has it";
    assert_eq!(error, says);
    assert_eq!((fake.driver().unwrap(), fake.override_of()), ("vfio-pci".to_owned(), "vfio-pci".to_owned()));
}

#[test]
fn a_group_that_a_process_holds_is_not_taken_from_it() {
    let fake = Fake::new();
    fake.pci().bind(&fake.disk()).unwrap();
    fake.link("proc/812/fd/9", "/dev/vfio/12");
    assert_eq!(fake.pci().holders(12), ["process 812 (reactor)"]);
    assert_eq!(fake.pci().holders(1), [""; 0]);
    let holds = [(812, 12), (812, 13), (97, 12), (5, 12)].map(|(process, group)| fake.pci().holds(process, group));
    assert_eq!(holds, [Some(true), Some(false), Some(false), None]);
    let error = fake.pci().unbind(&fake.disk()).unwrap_err();
    assert_eq!(error.to_string(), "0000:01:00.0 is held by process 812 (reactor)");
    assert_eq!(fake.driver().as_deref(), Some("vfio-pci"));
}

#[test]
fn what_changed_since_it_was_looked_at_is_left_alone() {
    let fake = Fake::new();
    let seen = fake.disk();
    fake.pci().bind(&seen).unwrap();
    let error = fake.pci().bind(&seen).unwrap_err();
    assert_eq!(error.to_string(), "0000:01:00.0 has changed hands from nvme to vfio-pci meanwhile: look again");
}

#[test]
fn each_refusal_names_its_remedy() {
    let fake = Fake::new();
    let missing = fake.pci().function(address("0000:09:00.0")).unwrap_err().to_string();
    let says = "no NVMe disk at 0000:09:00.0: this machine has 0000:01:00.0 (serial S1), 0000:02:00.0";
    assert_eq!(missing, says);
    assert!(fake.pci().function(address(SIBLING)).is_err(), "not a disk");
    fs::remove_dir(fake.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
    let error = fake.pci().bind(&fake.disk()).unwrap_err().to_string();
    assert_eq!(error, "the kernel has no vfio-pci: modprobe vfio-pci (CONFIG_VFIO_PCI)");
    fs::remove_file(fake.path("sys/bus/pci/devices/0000:01:00.0/iommu_group")).unwrap();
    let error = fake.pci().bind(&fake.disk()).unwrap_err().to_string();
    let says = "this machine has no IOMMU, or it is off: enable VT-d or AMD-Vi in the firmware and boot with \
                intel_iommu=on (amd: on by default)";
    assert_eq!(error, says);
    let fake = Fake::new();
    fake.write("refuses", "driver_override 13");
    let error = fake.pci().bind(&fake.disk()).unwrap_err().to_string();
    assert!(error.starts_with("no right to write /") && error.ends_with("driver_override: run as root"), "{error}");
    assert_eq!(fake.driver().as_deref(), Some("nvme"));
}

#[test]
fn namespaces_are_those_of_the_controllers_disks() {
    let fake = Fake::new();
    let controller = "sys/bus/pci/devices/0000:01:00.0/nvme/nvme0";
    // A disk of its own, a way to one of a subsystem, and what is none.
    for name in ["nvme3n2", "nvme3c0n1", "ng3n2", "hwmon1"] {
        fake.write(&format!("{controller}/{name}/x"), "");
    }
    for (disk, file, text) in [
        ("nvme3n1", "nsid", "1"),
        ("nvme3n1", "size", "131072"),
        ("nvme3n1", "queue/logical_block_size", "4096"),
        ("nvme3n1", "queue/zoned", "host-managed"),
        ("nvme3n2", "nsid", "2"),
        ("nvme3n2", "size", "8"),
        ("nvme3n2", "queue/logical_block_size", "512"),
        ("nvme3n2", "queue/zoned", "none"),
        ("nvme3n2", "metadata_bytes", "8"),
        ("nvme4n1", "nsid", "1"),
    ] {
        fake.write(&format!("sys/block/{disk}/{file}"), &format!("{text}\n"));
    }
    let found = fake.pci().namespaces(&fake.disk());
    let one = KernelNamespace {
        nsid: 1,
        disk: "nvme3n1".to_owned(),
        bytes: 64 << 20,
        block_size: 4096,
        metadata: 0,
        zoned: true,
    };
    let two = KernelNamespace {
        nsid: 2,
        disk: "nvme3n2".to_owned(),
        bytes: 4096,
        block_size: 512,
        metadata: 8,
        zoned: false,
    };
    assert_eq!(found, [one, two.clone()]);
    assert_eq!((two.folder().as_str(), two.generic().as_str()), ("sys/block/nvme3n2", "sys/class/nvme-generic/ng3n2"));
    assert_eq!(fake.pci().namespaces(&fake.pci().functions()[1]), [], "vfio-pci has it");
}
