use super::*;
use crate::sys::pci;

fn function(driver: &str, is_unsafe: bool) -> Function {
    let address: Address = "0000:01:00.0".parse().unwrap();
    let other = "0000:01:00.1".parse().unwrap();
    Function {
        address,
        id: (0x1b36, 0x10),
        subsystem: (0, 0),
        numa_node: None,
        driver: Some(driver.to_owned()),
        group: Some(pci::Group {
            number: 12,
            is_unsafe,
            functions: vec![(address, Some(driver.to_owned())), (other, Some("snd_hda_intel".to_owned()))],
            reserved: Vec::new(),
        }),
        identity: None,
    }
}

#[test]
fn only_functions_of_vfio_pci_behind_an_iommu_are_taken() {
    assert_eq!(admit(&function("vfio-pci", false)).unwrap().number, 12);
    let error = admit(&function("vfio-pci", true)).unwrap_err().to_string();
    assert_eq!(
        error,
        "vfio is in its unsafe mode without an IOMMU: reactor refuses, a faulty device could write anywhere"
    );
    let error = admit(&function("nvme", false)).unwrap_err().to_string();
    let remedy = "reactor nvme bind 0000:01:00.0 gives it to VFIO, unless somebody uses it";
    assert_eq!(error, format!("0000:01:00.0 belongs to nvme: {remedy}"));
    let without = Function { group: None, ..function("vfio-pci", false) };
    assert!(matches!(admit(&without), Err(VfioError::Pci(PciError::NoIommu))));
}

#[test]
fn a_machine_without_vfio_says_so() {
    let root = tempfile::tempdir().unwrap();
    let pci = Pci::at(root.path(), |_, _| Ok(()));
    let error = Container::open(&pci).unwrap_err().to_string();
    assert_eq!(error, "the kernel has no vfio-pci: modprobe vfio-pci (CONFIG_VFIO_PCI)");
    fs::create_dir_all(root.path().join("dev/vfio")).unwrap();
    fs::write(root.path().join("dev/vfio/vfio"), "").unwrap();
    let error = Container::open(&pci).unwrap_err();
    assert!(
        matches!(&error, VfioError::Kernel { source, .. } if source.raw_os_error() == Some(libc::ENOTTY)),
        "{error}"
    );
}

#[test]
fn each_refusal_names_its_remedy() {
    let address = function("nvme", false).address;
    let others = function("vfio-pci", false).group.unwrap().in_the_way(address);
    let held = |by: &[&str]| PciError::Held { address, by: by.iter().map(|who| (*who).to_owned()).collect() }.into();
    let limit = |limit| VfioError::MemoryLimit { bytes: 256 << 20, limit };
    let path = PathBuf::from("/dev/vfio/12");
    let texts: [(VfioError, &str); 11] = [
        (VfioError::NoRight { path }, "no right to open /dev/vfio/12: run as root, or chown it"),
        (held(&["process 812 (reactor)"]), "0000:01:00.0 is held by process 812 (reactor)"),
        (held(&[]), "0000:01:00.0 is held by a process that could not be seen"),
        (
            VfioError::NotViable { group: 12, others },
            "group 12 has functions that other drivers have: 0000:01:00.1 (snd_hda_intel): bind them to vfio-pci or to none",
        ),
        (
            VfioError::NotViable { group: 12, others: Vec::new() },
            "group 12 has functions that other drivers have: none that could be seen: bind them to vfio-pci or to none",
        ),
        (
            VfioError::NoInterruptRemapping,
            "the IOMMU cannot remap interrupts: boot with intremap on, or allow \
             vfio_iommu_type1.allow_unsafe_interrupts=1 knowing that a device could forge interrupts",
        ),
        (
            limit(Some(8 << 20)),
            "256MiB of DMA memory cannot be pinned (limit 8MiB): LimitMEMLOCK=infinity, ulimit -l, or CAP_IPC_LOCK",
        ),
        (
            limit(None),
            "256MiB of DMA memory cannot be pinned (limit unknown): LimitMEMLOCK=infinity, ulimit -l, or CAP_IPC_LOCK",
        ),
        (VfioError::NoType1, "the kernel has no vfio_iommu_type1: modprobe vfio_iommu_type1 (CONFIG_VFIO_IOMMU_TYPE1)"),
        (
            VfioError::NoWindow { bytes: 3 << 40 },
            "the IOMMU has no free range of 3TiB for the arena: a smaller [memory] size, or fewer devices in its way",
        ),
        (
            VfioError::Kernel { what: "SET_IOMMU".to_owned(), source: io::Error::from_raw_os_error(libc::EINVAL) },
            "SET_IOMMU: Invalid argument (os error 22)",
        ),
    ];
    for (error, text) in texts {
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn sizes_are_said_in_the_largest_unit_that_is_whole() {
    let sizes = [0, 1, 1023, 1024, 65_536, 1 << 20, (1 << 20) + 4096, 5 << 30, 3 << 40, 1 << 50].map(size);
    assert_eq!(sizes, ["0", "1", "1023", "1KiB", "64KiB", "1MiB", "1028KiB", "5GiB", "3TiB", "1024TiB"]);
}

#[test]
fn the_limit_on_locked_memory_is_read() {
    let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                Max open files            1024                 524288               files     \n\
                Max locked memory         8388608              8388608              bytes     \n";
    assert_eq!(memory_limit(text), Some(8 << 20));
    assert_eq!(memory_limit(&text.replace("8388608", "unlimited")), None);
    assert_eq!(memory_limit(""), None);
    let own = fs::read_to_string("/proc/self/limits").unwrap();
    assert!(own.contains("Max locked memory"), "{own}");
}
