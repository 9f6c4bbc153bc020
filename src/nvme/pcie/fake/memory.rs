//! What the controller may read and write, as an IOMMU would say it: blocks that it was given for queues and lists, and the data of
//! commands in flight, which the driver holds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use hugepages::DeviceBuf;

use super::super::port::Held;
use super::lock::Lock;

/// Messages that are kept; more are only counted.
const MESSAGES_MAX: usize = 64;

/// A place in a block that the controller was given.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) block: DeviceBuf,
    pub(super) at: usize,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// By address of the first byte.
    blocks: Lock<BTreeMap<u64, DeviceBuf>>,
    faults: AtomicU64,
    /// Of those, of commands that the driver does not hold any more.
    given_back: AtomicU64,
    messages: Lock<Vec<String>>,
}

impl Memory {
    /// Forgets blocks that the driver has given back: nobody has them but this list.
    pub(super) fn sweep(&self) {
        self.blocks.lock().retain(|_, block| !block.is_sole());
    }

    pub(super) fn grant(&self, block: &DeviceBuf) -> u64 {
        let address = block.address() as u64;
        self.blocks.lock().insert(address, block.clone());
        address
    }

    /// From now on there is none that the controller may touch.
    pub(super) fn revoke(&self) {
        self.blocks.lock().clear();
    }

    /// The place of `len` bytes that lie in one block, which the driver has still.
    pub(super) fn find(&self, address: u64, len: usize) -> Option<Spot> {
        let blocks = self.blocks.lock();
        let (start, block) = blocks.range(..=address).next_back()?;
        let at = usize::try_from(address - start).ok()?;
        let inside = at <= block.len() && len <= block.len() - at && !block.is_sole();
        inside.then(|| Spot { block: block.clone(), at })
    }

    /// Notes an access that nobody allows.
    #[cold]
    pub(super) fn fault(&self, who: &dyn Fn() -> String, address: u64, len: usize) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        let mut messages = self.messages.lock();
        if messages.len() < MESSAGES_MAX {
            messages.push(format!("{}: {len} bytes at {address:#x} are not the controller's to touch", who()));
        }
    }

    /// Faults of commands whose memory the driver has given back under the controller.
    pub(super) fn given_back(&self) -> u64 {
        self.given_back.load(Ordering::Relaxed)
    }

    pub(super) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    pub(super) fn messages(&self) -> Vec<String> {
        self.messages.lock().clone()
    }
}

/// What the driver is known to hold for a queue.
#[derive(Clone, Copy)]
pub(super) enum Holder<'a> {
    /// Its data is asked for here.
    Here(&'a dyn Held),
    /// Nobody: data is in blocks that the controller was given.
    Nobody,
    /// The driver has dropped the queue under the controller, and with it, for ever, the memory of its commands: they are touched
    /// without harm.
    Forgotten,
}

/// The accesses of one command.
#[derive(Clone, Copy)]
pub(super) struct Dma<'a> {
    pub(super) memory: &'a Memory,
    pub(super) holder: Holder<'a>,
    pub(super) qid: u16,
    pub(super) cid: u16,
}

impl Dma<'_> {
    /// Reads from the host's memory; `false`: a fault.
    #[inline]
    pub(super) fn read(&self, address: u64, into: &mut [u8]) -> bool {
        self.touch(address, into.len(), |place| match place {
            Ok(bytes) => into.copy_from_slice(bytes),
            Err(Spot { block, at }) => block.read(at, into),
        })
    }

    /// Writes to the host's memory; `false`: a fault.
    #[inline]
    pub(super) fn write(&self, address: u64, from: &[u8]) -> bool {
        self.touch(address, from.len(), |place| match place {
            Ok(bytes) => bytes.copy_from_slice(from),
            Err(Spot { block, at }) => block.write(at, from),
        })
    }

    #[inline]
    fn touch(&self, address: u64, len: usize, mut f: impl FnMut(Result<&mut [u8], Spot>)) -> bool {
        if let Holder::Here(held) = self.holder
            && held.with(self.cid, address, len, &mut |bytes| f(Ok(bytes)))
        {
            return true;
        }
        if let Some(spot) = self.memory.find(address, len) {
            f(Err(spot));
            return true;
        }
        match self.holder {
            Holder::Forgotten => return true,
            Holder::Here(held) if !held.has(self.cid) => {
                self.memory.given_back.fetch_add(1, Ordering::Relaxed);
            }
            Holder::Here(_) | Holder::Nobody => {}
        }
        self.memory.fault(&|| format!("queue {} command {:#06x}", self.qid, self.cid), address, len);
        false
    }
}
