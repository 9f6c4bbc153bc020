//! Copies to and from shared memory, which other cores or a device may touch at the same time.
//!
//! Such a race is not undefined behaviour, because shared memory is never behind a reference and never accessed by a
//! plain load or store of the language: every access is a relaxed atomic on an aligned word, or an instruction in an
//! `asm!` block, whose effect on memory the compiler must take to be anything that relaxed atomics could do. A reader
//! that races a writer gets old or new contents, mixed in any pattern. Order comes from whatever announces the data,
//! as with any relaxed access.
#![expect(unsafe_code, reason = "copies by instructions or atomics, to bear races that slices must not have")]

#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) use string::{copy_in, copy_out, zero};
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub(crate) use word::{copy_in, copy_out, zero};

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod string {
    use std::arch::asm;

    /// From this size on the string instructions beat a loop of 16-byte moves (measured on Zen: 36 ns to start, then
    /// 130 GB/s; the loop needs 11 ns for 512 bytes, 21 ns more per KiB). They also move large blocks without first
    /// reading the lines they overwrite.
    const STRING_MIN: usize = 2048;
    /// Bytes of one turn of the loop.
    const STRIDE: usize = 64;

    /// Copies `len` bytes of shared memory to private memory.
    ///
    /// # Safety
    /// `source..source+len` is mapped, shared memory, `target..target+len` is the caller's own; they do not overlap.
    #[inline]
    pub(crate) unsafe fn copy_out(source: *const u8, target: *mut u8, len: usize) {
        // SAFETY: by the contract of this function.
        unsafe { copy(source, target, len) };
    }

    /// Copies `len` bytes of private memory to shared memory.
    ///
    /// # Safety
    /// `source..source+len` is the caller's own, `target..target+len` is mapped, shared memory; they do not overlap.
    #[inline]
    pub(crate) unsafe fn copy_in(source: *const u8, target: *mut u8, len: usize) {
        // SAFETY: by the contract of this function.
        unsafe { copy(source, target, len) };
    }

    #[inline]
    unsafe fn copy(source: *const u8, target: *mut u8, len: usize) {
        if !(STRIDE..STRING_MIN).contains(&len) {
            // SAFETY: reads and writes the two ranges of the contract, upwards (the ABI keeps the direction flag clear).
            unsafe {
                asm!("rep movsb", inout("rcx") len => _, inout("rsi") source => _, inout("rdi") target => _,
                    options(nostack, preserves_flags));
            }
            return;
        }
        let whole = len & !(STRIDE - 1);
        // SAFETY: `whole` is at most `len` and a positive multiple of STRIDE, which the loop counts up from -whole to 0 from
        // the ends of the two ranges. The last STRIDE bytes are copied first, which covers the tail: len >= STRIDE.
        unsafe {
            asm!(
                "movdqu {x0}, [{source_tail}]",
                "movdqu {x1}, [{source_tail} + 16]",
                "movdqu {x2}, [{source_tail} + 32]",
                "movdqu {x3}, [{source_tail} + 48]",
                "movdqu [{target_tail}], {x0}",
                "movdqu [{target_tail} + 16], {x1}",
                "movdqu [{target_tail} + 32], {x2}",
                "movdqu [{target_tail} + 48], {x3}",
                "2:",
                "movdqu {x0}, [{source} + {index}]",
                "movdqu {x1}, [{source} + {index} + 16]",
                "movdqu {x2}, [{source} + {index} + 32]",
                "movdqu {x3}, [{source} + {index} + 48]",
                "movdqu [{target} + {index}], {x0}",
                "movdqu [{target} + {index} + 16], {x1}",
                "movdqu [{target} + {index} + 32], {x2}",
                "movdqu [{target} + {index} + 48], {x3}",
                "add {index}, 64",
                "jnz 2b",
                source = in(reg) source.add(whole),
                target = in(reg) target.add(whole),
                source_tail = in(reg) source.add(len - STRIDE),
                target_tail = in(reg) target.add(len - STRIDE),
                index = inout(reg) whole.wrapping_neg() => _,
                x0 = out(xmm_reg) _,
                x1 = out(xmm_reg) _,
                x2 = out(xmm_reg) _,
                x3 = out(xmm_reg) _,
                options(nostack),
            );
        }
    }

    /// Fills `len` bytes of shared memory with zeros.
    ///
    /// # Safety
    /// `target..target+len` is mapped, shared memory.
    #[inline]
    pub(crate) unsafe fn zero(target: *mut u8, len: usize) {
        // SAFETY: writes the range of the contract, upwards (the ABI keeps the direction flag clear).
        unsafe {
            asm!("rep stosb", inout("rcx") len => _, inout("rdi") target => _, in("al") 0_u8,
                options(nostack, preserves_flags));
        }
    }
}

/// The same by relaxed atomics on aligned words, for other machines and for the interpreter. All accesses to shared memory are
/// of one size, the edges too: a race of accesses of different sizes would be undefined. (The portable way is about
/// three times slower: compilers do not vectorise atomics.)
#[cfg(any(test, not(all(target_arch = "x86_64", not(miri)))))]
mod word {
    use std::sync::atomic::{AtomicU64, Ordering};

    const WORD: usize = size_of::<u64>();

    /// The bytes of a word as they lie in memory.
    fn bytes_of(word: u64) -> [u8; WORD] {
        word.to_le().to_le_bytes()
    }

    /// The word of bytes as they lie in memory.
    fn word_of(bytes: [u8; WORD]) -> u64 {
        u64::from_le(u64::from_le_bytes(bytes))
    }

    /// Calls `visit` for each aligned word that start..start+len touches, with the offset of its first byte from `start`
    /// in the range and which bytes of the word (from, to) are in the range.
    ///
    /// # Safety
    /// start..start+len is mapped, shared memory; it is mapped in whole pages, so the words at the edges are too.
    #[inline]
    unsafe fn each_word(start: *mut u8, len: usize, mut visit: impl FnMut(usize, &AtomicU64, usize, usize)) {
        let mut done = 0;
        while done < len {
            let from = start.wrapping_add(done).addr() % WORD;
            let to = WORD.min(from + (len - done));
            let word = start.wrapping_add(done).wrapping_sub(from).cast::<u64>();
            // SAFETY: aligned, mapped (contract), and only ever accessed atomically.
            visit(done, unsafe { AtomicU64::from_ptr(word) }, from, to);
            done += to - from;
        }
    }

    /// Copies `len` bytes of shared memory to private memory.
    ///
    /// # Safety
    /// `source..source+len` is mapped, shared memory, `target..target+len` is the caller's own; they do not overlap.
    pub(crate) unsafe fn copy_out(source: *const u8, target: *mut u8, len: usize) {
        // SAFETY: the words are mapped; each piece of `target` written is inside target..target+len.
        unsafe {
            each_word(source.cast_mut(), len, |done, word, from, to| {
                let bytes = bytes_of(word.load(Ordering::Relaxed));
                target.add(done).copy_from_nonoverlapping(bytes[from..to].as_ptr(), to - from);
            });
        }
    }

    /// Copies `len` bytes of private memory to shared memory.
    ///
    /// # Safety
    /// `source..source+len` is the caller's own, `target..target+len` is mapped, shared memory; they do not overlap.
    pub(crate) unsafe fn copy_in(source: *const u8, target: *mut u8, len: usize) {
        // SAFETY: the words are mapped; each piece of `source` read is inside source..source+len.
        unsafe {
            each_word(target, len, |done, word, from, to| {
                let mut bytes = [0; WORD];
                bytes[from..to].as_mut_ptr().copy_from_nonoverlapping(source.add(done), to - from);
                merge(word, bytes, from, to);
            });
        }
    }

    /// Fills `len` bytes of shared memory with zeros.
    ///
    /// # Safety
    /// `target..target+len` is mapped, shared memory.
    pub(crate) unsafe fn zero(target: *mut u8, len: usize) {
        // SAFETY: the words are mapped.
        unsafe { each_word(target, len, |_, word, from, to| merge(word, [0; WORD], from, to)) };
    }

    /// Writes bytes from..to of a word; at an edge it exchanges, so that other cores' bytes of the word are kept.
    #[inline]
    fn merge(word: &AtomicU64, bytes: [u8; WORD], from: usize, to: usize) {
        if (from, to) == (0, WORD) {
            return word.store(word_of(bytes), Ordering::Relaxed);
        }
        let merged = |old: u64| {
            let mut merged = bytes_of(old);
            merged[from..to].copy_from_slice(&bytes[from..to]);
            Some(word_of(merged))
        };
        let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, merged);
    }
}

#[cfg(test)]
mod tests {
    type CopyOut = unsafe fn(*const u8, *mut u8, usize);
    type Zero = unsafe fn(*mut u8, usize);

    /// Every size through all branches, at every alignment of both ends, between two guards that must not change.
    fn check(copy_in: CopyOut, copy_out: CopyOut, zero: Zero) {
        let sizes = (0..150).chain([511, 512, 2047, 2048, 2049, 4096, 5000]);
        for len in sizes {
            for (skip, other) in [(0, 0), (1, 0), (0, 3), (7, 5), (9, 8)] {
                let data: Vec<u8> = (0..len + other).map(|i| i as u8 ^ 0x5A).collect();
                let mut region = vec![0xEE_EE_EE_EE_EE_EE_EE_EE_u64; (len + skip) / 8 + 3];
                let start = region.as_mut_ptr().cast::<u8>().wrapping_add(8 + skip);
                let bytes =
                    |region: &[u64]| region.iter().flat_map(|word| word.to_le().to_le_bytes()).collect::<Vec<u8>>();
                // SAFETY: `start` has `len` bytes within `region`, whole words around; the vectors do not overlap.
                unsafe { copy_in(data[other..].as_ptr(), start, len) };
                let seen = bytes(&region);
                assert_eq!(seen[8 + skip..8 + skip + len], data[other..], "in {len} {skip} {other}");
                assert!(seen[..8 + skip].iter().chain(&seen[8 + skip + len..]).all(|b| *b == 0xEE), "in {len} {skip}");
                let mut back = vec![0xDD; len + other + 1];
                // SAFETY: as above.
                unsafe { copy_out(start, back[other..].as_mut_ptr(), len) };
                assert_eq!(back[other..other + len], data[other..], "out {len} {skip} {other}");
                assert!(back[..other].iter().chain(&back[other + len..]).all(|b| *b == 0xDD), "out {len} {other}");
                // SAFETY: as above.
                unsafe { zero(start, len) };
                let seen = bytes(&region);
                assert!(seen[8 + skip..8 + skip + len].iter().all(|b| *b == 0), "zero {len} {skip}");
                assert!(
                    seen[..8 + skip].iter().chain(&seen[8 + skip + len..]).all(|b| *b == 0xEE),
                    "zero {len} {skip}"
                );
            }
        }
    }

    #[test]
    fn native_copies_are_exact() {
        check(super::copy_in, super::copy_out, super::zero);
    }

    #[test]
    fn portable_copies_are_exact() {
        check(super::word::copy_in, super::word::copy_out, super::word::zero);
    }
}
