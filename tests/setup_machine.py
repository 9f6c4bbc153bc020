"""scripts/setup on a machine that is a directory: what it makes is there, and --undo takes back no more and no less."""

import os
import pathlib
import pwd
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "scripts"))
from setup_machine import HUGEPAGES, STATE, Machine, Refused, check, prepare, undo

ME = pwd.getpwuid(os.getuid()).pw_name


class Fake(Machine):
    """One disk of vfio-pci in group 12, one of the kernel in group 13, an IOMMU, and modules that can be loaded."""

    def __init__(self, folder):
        super().__init__(folder, self.load, self.give, lambda line: self.said.append(line))
        self.said, self.given, self.stuck, self.most = [], [], set(), 1 << 20
        for number in ("12", "13"):
            self.path(f"sys/kernel/iommu_groups/{number}").mkdir(parents=True)
        self.write(HUGEPAGES, "4\n")
        for address, group, driver in (("0000:01:00.0", "12", "vfio-pci"), ("0000:02:00.0", "13", "nvme")):
            function = f"sys/bus/pci/devices/{address}"
            self.write(f"{function}/class", "0x010802\n")
            self.path(f"sys/drivers/{driver}").mkdir(parents=True)
            os.symlink(self.path(f"sys/drivers/{driver}"), self.path(f"{function}/driver"))
            os.symlink(self.path(f"sys/kernel/iommu_groups/{group}"), self.path(f"{function}/iommu_group"))
            self.write(f"dev/vfio/{group}", "")

    def write(self, name, text):
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_text(text)

    def folder_of(self, module):
        return self.path("sys/bus/pci/drivers/vfio-pci" if module == "vfio-pci" else f"sys/module/{module}")

    def load(self, name, remove=False):
        if name in self.stuck:
            return False
        if remove:
            self.folder_of(name).rmdir()
        else:
            self.folder_of(name).mkdir(parents=True)
        return True

    def hugepages(self):
        return min(super().hugepages(), self.most)

    def give(self, node, uid, gid):
        self.given.append((node.name, uid, gid))


class Setup(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.machine = Fake(folder.name)

    def test_a_look_changes_nothing(self):
        missing = check(self.machine, 8)
        self.assertEqual([line.split(":")[0] for line in missing], ["module vfio-pci", "module vfio_iommu_type1", "hugepages"])
        self.assertFalse(self.machine.path(STATE).exists())
        self.assertEqual(self.machine.hugepages(), 4)

    def test_what_is_made_is_there_and_taken_back(self):
        self.assertEqual(prepare(self.machine, 8), [])
        self.assertEqual(self.machine.hugepages(), 8)
        self.assertEqual(check(self.machine, 8), [])
        # Again, with more: the state still knows how it was.
        self.assertEqual(prepare(self.machine, 16), [])
        self.assertEqual(undo(self.machine), [])
        self.assertEqual(self.machine.hugepages(), 4)
        self.assertFalse(self.machine.has_module("vfio-pci"))
        self.assertFalse(self.machine.path(STATE).exists())
        self.assertEqual(undo(self.machine), [], "nothing to undo")

    def test_what_was_there_before_stays(self):
        self.machine.load("vfio-pci")
        prepare(self.machine, 4)
        undo(self.machine)
        self.assertTrue(self.machine.has_module("vfio-pci"))
        self.assertFalse(self.machine.has_module("vfio_iommu_type1"))
        self.assertEqual(self.machine.hugepages(), 4)

    def test_what_somebody_else_has_changed_is_left(self):
        prepare(self.machine, 8)
        self.machine.write(HUGEPAGES, "100\n")
        self.assertEqual(undo(self.machine), [])
        self.assertEqual(self.machine.hugepages(), 100)

    def test_a_module_in_use_stays_and_is_tried_again(self):
        prepare(self.machine)
        self.machine.stuck = {"vfio-pci"}
        left = undo(self.machine)
        self.assertEqual(len(left), 1)
        self.assertIn("module vfio-pci: in use", left[0])
        self.machine.stuck = set()
        self.assertEqual(undo(self.machine), [])
        self.assertFalse(self.machine.path(STATE).exists())

    def test_a_module_with_devices_stays(self):
        prepare(self.machine)
        device = self.machine.path("sys/bus/pci/drivers/vfio-pci/0000:01:00.0")
        device.touch()
        self.assertIn("0000:01:00.0 bound to it", undo(self.machine)[0])
        device.unlink()
        self.assertEqual(undo(self.machine), [])

    def test_hugepages_are_only_added(self):
        self.assertEqual(prepare(self.machine, 2), [])
        self.assertEqual(self.machine.hugepages(), 4)

    def test_fewer_hugepages_than_asked_are_taken_back(self):
        self.machine.most = 6
        self.assertEqual(len(prepare(self.machine, 8)), 1)
        self.assertEqual(self.machine.hugepages(), 6)
        undo(self.machine)
        self.assertEqual(self.machine.hugepages(), 4)

    def test_a_module_that_cannot_be_loaded_is_missing(self):
        self.machine.stuck = {"vfio-pci"}
        self.assertEqual(len(prepare(self.machine)), 1)
        self.assertIn("modprobe vfio-pci fails", self.machine.said)

    def test_a_user_gets_the_groups_of_bound_disks_and_the_limit(self):
        prepare(self.machine, user=ME)
        limits = self.machine.path(self.machine.limits_file(ME))
        self.assertEqual(limits.read_text(), f"{ME} - memlock unlimited\n")
        self.assertEqual(self.machine.groups(), ["12"])
        undo(self.machine)
        self.assertFalse(limits.exists())

    def test_nodes_are_given_to_the_user(self):
        other = next(entry for entry in pwd.getpwall() if entry.pw_uid != os.getuid())
        missing = prepare(self.machine, user=other.pw_name)
        self.assertEqual(self.machine.given, [("12", other.pw_uid, -1)])
        # Nothing was really given in this directory, and that is said.
        self.assertEqual([line.split(":")[0] for line in missing if "vfio/" in line], ["/dev/vfio/12"])

    def test_a_machine_without_an_iommu_says_what_to_do(self):
        for group in self.machine.path("sys/kernel/iommu_groups").iterdir():
            group.rmdir()
        self.assertIn("intel_iommu=on", check(self.machine)[0])

    def test_nobody_is_no_user(self):
        with self.assertRaises(Refused):
            prepare(self.machine, user="no-such-user-here")
        self.assertFalse(self.machine.path(STATE).exists())


if __name__ == "__main__":
    unittest.main()
