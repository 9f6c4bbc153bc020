//! Which driver's a disk is, on a made tree of sysfs.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

/// A machine in a directory of its own, which goes with it.
struct Machine(std::path::PathBuf);

impl Machine {
    fn new(name: &str) -> Machine {
        let root = std::env::temp_dir().join(format!("reactor-disks-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        Machine(root)
    }

    /// A controller at 0000:0N:00.0; with a serial number if the kernel's driver has brought it up.
    fn disk(&self, slot: u8, driver: Option<&str>, serial: Option<&str>) {
        let function = self.0.join(format!("sys/bus/pci/devices/0000:{slot:02x}:00.0"));
        fs::create_dir_all(&function).expect("a directory");
        fs::write(function.join("class"), "0x010802\n").expect("a file");
        if let Some(driver) = driver {
            symlink(format!("../../drivers/{driver}"), function.join("driver")).expect("a link");
        }
        if let Some(serial) = serial {
            let controller = function.join(format!("nvme/nvme{slot}"));
            fs::create_dir_all(&controller).expect("a directory");
            fs::write(controller.join("serial"), format!("{serial:<20}\n")).expect("a file");
        }
    }

    fn of_the_kernel(&self, disk: Which, mode: Mode) -> Result<Option<String>, String> {
        let disks = Disks { pci: Pci::at(&self.0, |_, _| Ok(())), ..Disks::new() };
        let wanted = Wanted { mode, ..Wanted::new(disk) };
        let found = disks.of_the_kernel(&wanted).map_err(|error| error.to_string())?;
        Ok(found.map(|function| function.address.to_string()))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn at(slot: u8) -> Which {
    Which::Pci(format!("0000:{slot:02x}:00.0").parse().expect("an address"))
}

fn serial(serial: &str) -> Which {
    Which::Serial(serial.to_owned())
}

#[test]
fn a_disk_is_driven_by_who_has_it_or_as_is_wanted() {
    let machine = Machine::new("modes");
    machine.disk(1, Some("nvme"), Some("S1"));
    machine.disk(2, Some("vfio-pci"), None);
    machine.disk(3, None, None);
    machine.disk(4, Some("nvme"), None);
    let kernel = |slot: u8| Ok(Some(format!("0000:{slot:02x}:00.0")));
    for disk in [at(1), serial("S1")] {
        assert_eq!(machine.of_the_kernel(disk.clone(), Mode::Auto), kernel(1));
        assert_eq!(machine.of_the_kernel(disk.clone(), Mode::Kernel), kernel(1));
        assert_eq!(machine.of_the_kernel(disk, Mode::Vfio), Ok(None));
    }
    // VFIO has it, or says what to do; which disk has a serial number there, only the disk knows.
    for disk in [at(2), at(3), serial("S2")] {
        assert_eq!(machine.of_the_kernel(disk.clone(), Mode::Auto), Ok(None));
        assert_eq!(machine.of_the_kernel(disk, Mode::Vfio), Ok(None));
    }
    let said = |disk, mode| machine.of_the_kernel(disk, mode).expect_err("it cannot be driven so");
    let said_of_2 = said(at(2), Mode::Kernel);
    assert!(said_of_2.starts_with("0000:02:00.0 belongs to vfio-pci: mode = \"kernel\" needs"), "{said_of_2}");
    assert!(said_of_2.contains("reactor nvme unbind 0000:02:00.0"), "{said_of_2}");
    assert!(said(at(3), Mode::Kernel).starts_with("0000:03:00.0 belongs to no driver: "));
    for mode in [Mode::Auto, Mode::Kernel] {
        assert!(said(at(4), mode).starts_with("0000:04:00.0 belongs to nvme, and its controller is not ready"));
    }
    let nobody = said(serial("S2"), Mode::Kernel);
    assert_eq!(nobody, "no disk of the kernel's NVMe driver has serial S2; it has S1");
    assert!(said(at(9), Mode::Auto).starts_with("no NVMe disk at 0000:09:00.0"), "neither");
}
