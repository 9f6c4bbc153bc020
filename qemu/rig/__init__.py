"""The QEMU rig: builds a guest from the distribution's packages and runs tests in it.

packages  a private apt root: resolves, downloads and unpacks packages, needs no root
image     the root file system, the modules and the initrd of a guest, cached under target/qemu
machine   machine shapes (shapes.toml), the choice of accelerator, one boot and its result
cpio      the archive format of an initrd
"""
