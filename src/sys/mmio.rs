//! Registers of a device: what a driver needs of them, and a mapped region that has them.
#![expect(unsafe_code, reason = "loads and stores in memory that is a device's registers")]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::fs::{MemfdFlags, memfd_create};

/// The registers of one device. Clones are the same registers, on any core. Numbers are little-endian in the device and as the
/// processor has them here.
///
/// # Order
/// Accesses by one thread reach the device in the order in which they are made. A write comes after all earlier stores of the thread to memory, so
/// that a device which is told of memory finds it written. Loads of memory that follow a read are made after it.
///
/// # Panics
/// An access that leaves the registers, or is not at a multiple of its size: a defect of the caller's.
pub trait Registers: Clone + Send + Sync + 'static {
    /// One register that is written often.
    type Bell: Bell;

    /// Bytes from the first register on, and no access may go beyond.
    fn size(&self) -> u64;

    /// Reads 4 bytes. All ones from everywhere: the device is gone.
    fn read32(&self, at: u32) -> u32;

    /// Reads 8 bytes by one access of that size. All ones from everywhere: the device is gone.
    fn read64(&self, at: u32) -> u64;

    /// Writes 4 bytes.
    fn write32(&self, at: u32, value: u32);

    /// Writes 8 bytes by one access of that size.
    fn write64(&self, at: u32, value: u64);

    /// The register of 4 bytes at `at`, for a thread to ring; looked at once, so that ringing need not.
    fn bell(&self, at: u32) -> Self::Bell;
}

/// A doorbell of a device: a register of 4 bytes that is only written.
pub trait Bell: Send + 'static {
    /// Writes the register. Comes after all earlier stores of this thread to memory, of whatever kind: the entries that the device
    /// is told of need no fence of their own.
    ///
    /// It is no full fence: a load of memory that follows may be made before.
    fn ring(&self, value: u32);
}

/// A region of a device's memory, mapped for its registers (uncached). Clones, and the bells made of them, are the same mapping, which
/// ends with the last of them.
#[derive(Clone, Debug)]
pub struct Bar {
    // For the hot path not to go through the count.
    start: NonNull<u8>,
    mapping: Arc<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an address range that belongs to this value until it is dropped; all accesses are volatile, of registers that any
// thread may access.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}
// SAFETY: as `Mapping`, which it refers to and keeps.
unsafe impl Send for Bar {}
// SAFETY: as above.
unsafe impl Sync for Bar {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was given over to `Bar::new`, and nobody is left who accesses it.
        let unmapped = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert_eq!(unmapped, 0, "munmap: {}", io::Error::last_os_error());
    }
}

/// Alignment of mappings, in bytes.
const PAGE: usize = 4096;
/// Bytes of ones that are made to be mapped again and again over a region: as many as hold the registers of most devices.
const ONES: usize = 64 << 10;

impl Bar {
    /// Takes over a mapping, which it will unmap.
    ///
    /// # Errors
    /// `Unsupported` on processors other than x86-64. There a store to uncached memory is made after all earlier ones to ordinary memory, and a load
    /// of it before all later ones, so that only the compiler must be kept from changing their order. Others need barriers that reach
    /// devices (`dmb oshst` on 64-bit Arm), which are not here. The mapping is left as it is then.
    ///
    /// # Safety
    /// start..start+len is a mapping of whole pages, readable and writable, made for this value alone: nobody else unmaps it, or has
    /// references into it. If it is a device's, loads and stores of its registers have no effect on the memory safety of
    /// this process but by DMA, which is the driver's to answer for.
    pub unsafe fn new(start: NonNull<u8>, len: usize) -> io::Result<Bar> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "registers of devices are accessed on x86-64 only"));
        }
        assert!(start.addr().get().is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0, "no whole pages");
        Ok(Bar { start, mapping: Arc::new(Mapping { start, len }) })
    }

    /// Bytes mapped.
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.mapping.len
    }

    /// Takes the device away from under its registers: from now on all of them read as ones, and a write changes nothing but what its own register
    /// reads as. For a device that is being removed: accesses to its mapping end the process (SIGBUS) once it is gone, and its
    /// removal waits until nobody maps it. Other threads may read, write and ring meanwhile: each access is of the device or of the ones.
    ///
    /// # Errors
    /// What memfd_create(2), write(2) and mmap(2) say. Some pages may be the device's still then.
    pub fn blind(&self) -> io::Result<()> {
        let mut ones = File::from(memfd_create("ones", MemfdFlags::CLOEXEC)?);
        ones.write_all(&vec![0xFF; self.len().min(ONES)])?;
        for at in (0..self.len()).step_by(ONES) {
            let len = (self.len() - at).min(ONES);
            let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED);
            // SAFETY: pages of this mapping, which nobody has references into, are exchanged for others that may be read and written as
            // well: in one step for who accesses them meanwhile, since page faults wait for the end of this call.
            let mapped =
                unsafe { libc::mmap(self.start.as_ptr().add(at).cast(), len, access, flags, ones.as_raw_fd(), 0) };
            if mapped == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// The address of a register of type `T`.
    fn register<T>(&self, at: u32) -> NonNull<T> {
        let (at, size, len) = (at as usize, size_of::<T>(), self.len());
        assert!(at <= len - size && at.is_multiple_of(size), "{size} bytes at {at:#x} of registers of {len:#x}");
        // SAFETY: inside the mapping by the assertion: it has a page at least.
        unsafe { self.start.add(at) }.cast()
    }

    fn read<T: Copy>(&self, at: u32) -> T {
        let register = self.register::<T>(at);
        // SAFETY: inside the mapping and aligned; volatile, so exactly this access is made.
        let value = unsafe { register.read_volatile() };
        // Keeps the compiler from making later loads before.
        fence(Ordering::Acquire);
        value
    }

    fn write<T: Copy>(&self, at: u32, value: T) {
        // SAFETY: a register of this mapping.
        unsafe { write(self.register::<T>(at), value) };
    }
}

/// Writes a register after all earlier stores.
///
/// # Safety
/// The register is mapped, aligned, and volatile accesses of it are all that is done to it.
#[inline]
unsafe fn write<T: Copy>(register: NonNull<T>, value: T) {
    // Keeps the compiler from making earlier stores after: no instruction on x86-64, see `Bar::new`.
    fence(Ordering::Release);
    // SAFETY: by the contract of this function; volatile, so exactly this access is made.
    unsafe { register.write_volatile(value) };
}

impl Registers for Bar {
    type Bell = BarBell;

    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read32(&self, at: u32) -> u32 {
        u32::from_le(self.read(at))
    }

    fn read64(&self, at: u32) -> u64 {
        u64::from_le(self.read(at))
    }

    fn write32(&self, at: u32, value: u32) {
        self.write(at, value.to_le());
    }

    fn write64(&self, at: u32, value: u64) {
        self.write(at, value.to_le());
    }

    fn bell(&self, at: u32) -> BarBell {
        BarBell { register: self.register(at), _mapping: Arc::clone(&self.mapping) }
    }
}

/// One register of a [`Bar`], which it keeps mapped.
#[derive(Debug)]
pub struct BarBell {
    register: NonNull<u32>,
    _mapping: Arc<Mapping>,
}

// SAFETY: as `Mapping`, which it refers to and keeps.
unsafe impl Send for BarBell {}

impl Bell for BarBell {
    #[inline]
    fn ring(&self, value: u32) {
        // SAFETY: inside the mapping and aligned since `Registers::bell`, and mapped while this lives.
        unsafe { write(self.register, value.to_le()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, AtomicU32};

    /// Memory in the place of a device: a mapping, and the file to look at it from the other side.
    fn device(len: usize) -> (Bar, File) {
        let file = File::from(memfd_create("device", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(len as u64).unwrap();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: just mapped, for this value alone.
        (unsafe { Bar::new(NonNull::new(start.cast()).unwrap(), len) }.unwrap(), file)
    }

    fn bytes<const N: usize>(file: &File, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    #[test]
    fn registers_are_little_endian_at_their_places() {
        let (bar, file) = device(2 * PAGE);
        bar.write32(0x14, 0x0403_0201);
        bar.write64(0x28, 0x0807_0605_0403_0201);
        assert_eq!((bytes(&file, 0x14), bytes(&file, 0x28)), ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8]));
        file.write_all_at(&[9, 8, 7, 6, 5, 4, 3, 2], 0x1FF8).unwrap();
        assert_eq!(bar.read64(0x1FF8), 0x0203_0405_0607_0809);
        assert_eq!((bar.read32(0x1FF8), bar.read32(0x1FFC)), (0x0607_0809, 0x0203_0405));
        let bell = bar.bell(0x1008);
        let elsewhere = std::thread::spawn(move || {
            bell.ring(0xFFEE_DDCC);
            bell
        });
        let bell = elsewhere.join().unwrap();
        assert_eq!(bytes(&file, 0x1004), [0, 0, 0, 0, 0xCC, 0xDD, 0xEE, 0xFF, 0, 0, 0, 0]);
        // A bell keeps what it rings.
        drop(bar);
        bell.ring(1);
        assert_eq!(bytes(&file, 0x1008), [1, 0, 0, 0]);
    }

    #[test]
    fn what_leaves_the_registers_or_is_not_aligned_panics() {
        let (bar, file) = device(PAGE);
        let refuses = |access: &dyn Fn()| {
            let refused = catch_unwind(AssertUnwindSafe(access)).expect_err("an access that must not be");
            let text = refused.downcast::<String>().expect("a text");
            assert!(text.contains("of registers of 0x1000"), "{text}");
        };
        for at in [1, 2, 3, 0xFFD, 0x1000, 0x1004, u32::MAX, u32::MAX - 3] {
            refuses(&|| {
                bar.read32(at);
            });
            refuses(&|| bar.write32(at, 1));
            refuses(&|| drop(bar.bell(at)));
        }
        for at in [4, 0xFFC, 0x1000, u32::MAX - 7] {
            refuses(&|| {
                bar.read64(at);
            });
            refuses(&|| bar.write64(at, 1));
        }
        assert_eq!(bytes(&file, 0), [0; PAGE]);
        bar.bell(0xFFC).ring(7);
        assert_eq!(bar.read64(0xFF8), 7 << 32);
    }

    #[test]
    fn a_blinded_region_reads_as_ones_and_the_device_sees_nothing() {
        for len in [PAGE, ONES, ONES + PAGE, 3 * ONES] {
            let (bar, file) = device(len);
            let (last, bell) = (len as u32 - 4, bar.bell(8));
            bar.write32(last, 1);
            bar.clone().blind().unwrap();
            assert!((0..last / 8).all(|word| bar.read64(word * 8) == u64::MAX), "{len}");
            bar.write32(last, 2);
            bell.ring(3);
            assert_eq!((bar.read32(last), bar.read32(8), bar.read32(12)), (2, 3, u32::MAX));
            assert_eq!((bytes(&file, u64::from(last)), bytes(&file, 8)), ([1, 0, 0, 0], [0; 4]), "{len}");
            // What one piece was written with is not in the next.
            assert!(len == PAGE || bar.read64(len as u32 - PAGE as u32 + 8) == u64::MAX);
            bar.blind().unwrap();
            assert_eq!(bar.read32(8), u32::MAX);
        }
    }

    #[test]
    fn a_region_is_blinded_while_others_use_it() {
        const PATTERN: u32 = 0x5A5A_5A5A;
        let (bar, file) = device(4 * ONES);
        file.write_all_at(&[0x5A; 4 * ONES], 0).unwrap();
        let (stop, used) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let bell = bar.bell(16);
                    for at in (0..4 * ONES as u32).step_by(PAGE).cycle() {
                        let (before, value) = (stop.load(Ordering::Acquire), bar.read32(at));
                        assert!(value == u32::MAX || (value == PATTERN && !before), "{value:x} at {at:x}");
                        bell.ring(PATTERN);
                        used.fetch_add(1, Ordering::Relaxed);
                        if before {
                            break;
                        }
                    }
                });
            }
            while used.load(Ordering::Relaxed) < 1000 {
                std::thread::yield_now();
            }
            bar.blind().unwrap();
            stop.store(true, Ordering::Release);
        });
    }
}
