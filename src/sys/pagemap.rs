//! Which pages of this process hold memory: /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use zerocopy::IntoBytes;

/// The page is in memory.
const PRESENT: u64 = 1 << 63;
/// It was moved to swap, or is on its way to another place in memory.
const SWAPPED: u64 = 1 << 62;
/// Nobody else has it, nor does the kernel lend it to others.
const EXCLUSIVE: u64 = 1 << 56;
/// Entries read at a time.
const ENTRIES: usize = 128;

/// What stands behind a page of anonymous memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageUse {
    /// Nothing: it reads as zeros.
    None,
    /// Memory of its own, or swap.
    Own,
    /// Memory that others have too: the page of zeros that the kernel has for all that was only read, or what a child process shares.
    Shared,
}

/// The table of this process.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens it.
    ///
    /// # Errors
    /// Where there is no /proc.
    pub fn open() -> io::Result<Pagemap> {
        File::open("/proc/self/pagemap").map(Pagemap)
    }

    /// What stands behind the pages from number `first` of the address space on. A reactor may ask: the kernel looks at its tables, and
    /// waits for no device.
    ///
    /// # Errors
    /// What read(2) says.
    pub fn read(&self, first: usize, into: &mut [PageUse]) -> io::Result<()> {
        let mut at = first as u64 * 8;
        for part in into.chunks_mut(ENTRIES) {
            let mut entries = [0u64; ENTRIES];
            let bytes = entries[..part.len()].as_mut_bytes();
            self.0.read_exact_at(bytes, at)?;
            at += bytes.len() as u64;
            for (is, entry) in part.iter_mut().zip(entries) {
                *is = match entry {
                    entry if entry & SWAPPED != 0 => PageUse::Own,
                    entry if entry & PRESENT == 0 => PageUse::None,
                    entry if entry & EXCLUSIVE != 0 => PageUse::Own,
                    _ => PageUse::Shared,
                };
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hugepages::{Region, RegionOptions};

    #[test]
    fn written_read_and_untouched_pages_are_told_apart() {
        let region = Region::new(1 << 20, RegionOptions::default()).unwrap();
        let page = region.page_size();
        let pagemap = Pagemap::open().unwrap();
        let uses = || {
            let mut uses = [PageUse::Shared; 3];
            pagemap.read(region.address_of(page) / page, &mut uses).unwrap();
            uses
        };
        assert_eq!(uses(), [PageUse::None; 3]);
        region.write(page, &[1]);
        region.read(2 * page, &mut [0]);
        assert_eq!(uses(), [PageUse::Own, PageUse::Shared, PageUse::None]);
        region.discard(page, 3 * page);
        assert_eq!(uses(), [PageUse::None; 3]);
        let mut all = vec![PageUse::Shared; ENTRIES + 9];
        pagemap.read(region.address_of(0) / page, &mut all).unwrap();
        assert!(all.iter().all(|is| *is == PageUse::None));
    }
}
