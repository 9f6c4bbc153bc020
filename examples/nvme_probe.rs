//! Asks an NVMe disk and the kernel's VFIO what the driver builds upon, step by step and by hand: no driver is under this.
//!
//! `nvme_probe 0000:01:00.0` takes the disk from the kernel, reads from it, and gives it back. What it reads must have been
//! written before: each word of eight bytes of its first MiB tells its own offset. A line is said about each step, with the time
//! it took; the first that fails ends it. Only for disks whose data is not needed, and as root.
//!
//! - `--stray` also has the disk read to an address that was never mapped. The kernel must report it: a test that looks for such
//!   reports after each of its cases shows by this that it would see one.
//! - `--unplug` keeps the disk until it is asked for it, and says how that went.

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use hugepages::{Arena, ArenaOptions, DeviceBuf, HugepagePolicy, Pool};
use reactor::sys::mmio::{Bar, Registers};
use reactor::sys::pci::{Address, Pci};
use reactor::sys::socket::{Doorbell, Eventfd};
use reactor::sys::tsc::monotonic_ns;
use reactor::sys::vfio::{Container, Device, DmaSpace, Group};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Registers (NVMe Base 2.0, figure 35), and entries of a queue: its tables fit one page.
const CAP: u32 = 0x00;
const VS: u32 = 0x08;
const CC: u32 = 0x14;
const CSTS: u32 = 0x1c;
const AQA: u32 = 0x24;
const ASQ: u32 = 0x28;
const ACQ: u32 = 0x30;
const DOORBELLS: u32 = 0x1000;
const DEPTH: u32 = 32;

/// CAP: a controller memory buffer, which may be told of once it is asked for.
const CAP_BUFFER: u64 = 1 << 57;

/// CC: enabled, entries of 64 and 16 bytes.
const CC_ENABLE: u32 = 4 << 20 | 6 << 16 | 1;

const ARENA: usize = 64 << 20;
const CHUNK: usize = 16 << 20;
const BLOCK: usize = 4096;
/// No answer takes as long as this, under emulation on a busy machine too.
const PATIENCE_NS: u64 = 20_000_000_000;
/// An interrupt that has not come by then does not come.
const QUIET: Duration = Duration::from_millis(500);

/// A pair of queues, and their doorbells.
struct Queues {
    id: u16,
    sq: DeviceBuf,
    cq: DeviceBuf,
    tail: u32,
    head: u32,
    phase: u32,
    registers: Bar,
    stride: u32,
    /// Shadow doorbells and event indexes.
    shadow: Option<(DeviceBuf, DeviceBuf)>,
    /// Doorbells written.
    rung: u32,
}

/// Dword 0 and the status of a command.
type Answer = (u32, u16);

impl Queues {
    fn new(id: u16, pool: &Pool, registers: &Bar) -> Result<Queues> {
        let stride = 4 << (registers.read64(CAP) >> 32 & 0xf);
        let (sq, cq) = (memory(pool, BLOCK)?, memory(pool, BLOCK)?);
        let registers = registers.clone();
        Ok(Queues { id, sq, cq, tail: 0, head: 0, phase: 1, registers, stride, shadow: None, rung: 0 })
    }

    /// Doorbell `at` (0 of the submission queue, 1 of the completion queue) goes from `old` to `new`. With shadow doorbells it is
    /// written only if the disk has asked for it by its event index.
    fn ring(&mut self, at: u32, old: u32, new: u32) {
        let place = (2 * u32::from(self.id) + at) * self.stride;
        if let Some((shadow, events)) = &self.shadow {
            shadow.store32(place as usize, new);
            // The disk stores its index and then looks at the shadow: the store must be seen before the load.
            fence(Ordering::SeqCst);
            let event = events.load32(place as usize) as u16;
            if (new as u16).wrapping_sub(event).wrapping_sub(1) >= (new as u16).wrapping_sub(old as u16) {
                return;
            }
        }
        self.rung += 1;
        self.registers.write32(DOORBELLS + place, new);
    }

    fn submit(&mut self, mut command: [u64; 8]) {
        command[0] |= u64::from(self.tail) << 16;
        self.sq.store_words(self.tail as usize * 64, &command);
        let old = self.tail;
        self.tail = (old + 1) % DEPTH;
        self.ring(0, old, self.tail);
    }

    fn answer(&mut self) -> Result<Answer> {
        let end = monotonic_ns() + PATIENCE_NS;
        let at = self.head as usize * 16;
        while self.cq.load32(at + 12) >> 16 & 1 != self.phase {
            if monotonic_ns() > end {
                return Err(format!("queue {}: no answer, CSTS {:#x}", self.id, self.registers.read32(CSTS)).into());
            }
            std::hint::spin_loop();
        }
        let (result, status) = (self.cq.load32(at), (self.cq.load32(at + 12) >> 17) as u16);
        let old = self.head;
        self.head = (old + 1) % DEPTH;
        self.phase ^= u32::from(self.head == 0);
        self.ring(1, old, self.head);
        Ok((result, status))
    }

    fn run(&mut self, command: [u64; 8]) -> Result<Answer> {
        self.submit(command);
        self.answer()
    }

    /// As [`Queues::run`], of a command that must succeed. Returns the time it took too, in nanoseconds.
    fn succeed(&mut self, what: &str, command: [u64; 8]) -> Result<(u32, u64)> {
        let start = monotonic_ns();
        let (result, status) = self.run(command)?;
        let took = monotonic_ns() - start;
        if status != 0 { Err(format!("{what}: status {status:#x}").into()) } else { Ok((result, took)) }
    }
}

/// A command: opcode, namespace, data pointer, dwords 10 to 12.
fn command(opcode: u8, nsid: u32, pointer: [u64; 2], dwords: [u32; 3]) -> [u64; 8] {
    let [ten, eleven, twelve] = dwords.map(u64::from);
    [u64::from(opcode) | u64::from(nsid) << 32, 0, 0, pointer[0], pointer[1], ten | eleven << 32, twelve, 0]
}

/// A read of one block of 4 KiB at a byte offset: by two PRP entries' place, or by one descriptor (PSDT 1).
fn read(disk: &Disk, offset: u64, iova: u64, by_descriptor: bool) -> [u64; 8] {
    let (lba, last) = (offset >> disk.shift, (BLOCK >> disk.shift) - 1);
    let pointer = if by_descriptor { [iova, BLOCK as u64] } else { [iova, 0] };
    let mut words = command(0x02, 1, pointer, [lba as u32, (lba >> 32) as u32, last as u32]);
    words[0] |= u64::from(by_descriptor) << 14;
    words
}

fn memory(pool: &Pool, len: usize) -> Result<DeviceBuf> {
    let block = pool.alloc(len).ok_or("no memory left")?.into_device();
    block.zero();
    Ok(block)
}

fn iova(block: &DeviceBuf) -> Result<u64> {
    Ok(block.iova().ok_or("memory without an I/O address")?)
}

/// Counts of an eventfd, as they come.
fn rings(doorbell: &Doorbell) -> Result<Receiver<u64>> {
    let mut eventfd = File::from(doorbell.descriptor()?);
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut count = [0; 8];
        while eventfd.read_exact(&mut count).is_ok() && sender.send(u64::from_le_bytes(count)).is_ok() {}
    });
    Ok(receiver)
}

fn eventfd() -> Result<Doorbell> {
    Ok(Doorbell::Eventfd(Eventfd::new()?))
}

/// What the disk says of itself.
struct Disk {
    shift: u32,
    has_descriptors: bool,
    has_shadow: bool,
}

/// Memory that the disk can reach.
struct Memory {
    container: Arc<Container>,
    space: DmaSpace,
    pool: Pool,
}

fn say(what: &str, start: u64, text: impl std::fmt::Display) {
    println!("{what}: {text} ({} us)", (monotonic_ns() - start) / 1000);
}

/// Container, window, and one mapped chunk.
fn map(pci: &Pci, container: Arc<Container>) -> Result<Memory> {
    let start = monotonic_ns();
    let space = DmaSpace::new(&container, &pci.reserved_regions(), ARENA as u64)?;
    let window = space.window();
    say("window", start, format_args!("[{:#x}-{:#x}]", window.start, window.end));
    let arena = Arena::new(ArenaOptions { size: ARENA, hugepages: HugepagePolicy::Prefer, numa_node: None })?;
    let pool = Pool::new(0);
    for chunk in arena.grow(CHUNK)? {
        let start = monotonic_ns();
        let at = space.map(&chunk.info())?;
        say("map", start, format_args!("{} bytes on pages of {} at {at:#x}", chunk.info().len(), arena.page_size()));
        if chunk.info().iova() != Some(at) || space.map(&chunk.info())? != at {
            return Err("a chunk does not keep its I/O address".into());
        }
        pool.add(chunk);
    }
    Ok(Memory { container, space, pool })
}

/// The function with its registers, allowed to do DMA, and its admin queues.
fn start(group: &Arc<Group>, address: Address, pool: &Pool) -> Result<(Device, Queues)> {
    let start = monotonic_ns();
    let device = Device::open(group, address)?;
    let registers = device.registers().clone();
    let (cap, version) = (registers.read64(CAP), registers.read32(VS));
    let text = format!("BAR 0 of {} bytes, CAP {cap:#018x}, VS {version:#x}", registers.len());
    say("device", start, format_args!("{text}, {} vectors, can reset: {}", device.vectors(), device.can_reset()));
    if device.is_bus_master()? {
        return Err("a function that was just opened is bus master".into());
    }
    if cap & CAP_BUFFER != 0 {
        println!("buffer: BAR 2 of {} bytes", device.map_buffer(2)?.len());
    }
    device.set_bus_master(true)?;
    let start = monotonic_ns();
    registers.write32(CC, 0);
    ready(&registers, 0)?;
    let admin = Queues::new(0, pool, &registers)?;
    registers.write32(AQA, (DEPTH - 1) << 16 | (DEPTH - 1));
    registers.write64(ASQ, iova(&admin.sq)?);
    registers.write64(ACQ, iova(&admin.cq)?);
    registers.write32(CC, CC_ENABLE);
    ready(&registers, 1)?;
    say("enable", start, format_args!("CSTS {:#x}", registers.read32(CSTS)));
    Ok((device, admin))
}

fn ready(registers: &Bar, wanted: u32) -> Result<()> {
    let end = monotonic_ns() + PATIENCE_NS;
    while registers.read32(CSTS) & 1 != wanted {
        if monotonic_ns() > end {
            return Err(format!("not ready: CSTS {:#x}", registers.read32(CSTS)).into());
        }
    }
    Ok(())
}

fn identify(admin: &mut Queues, pool: &Pool) -> Result<Disk> {
    let page = memory(pool, BLOCK)?;
    let (_, took) = admin.succeed("IDENTIFY", command(0x06, 0, [iova(&page)?, 0], [1, 0, 0]))?;
    let mut serial = [0; 20];
    page.read(4, &mut serial);
    let (oacs, sgls) = (page.load32(256) as u16, page.load32(536));
    let serial = String::from_utf8_lossy(&serial).trim().to_owned();
    println!("identify: serial {serial}, OACS {oacs:#x}, SGLS {sgls:#x} ({} us)", took / 1000);
    admin.succeed("IDENTIFY namespace 1", command(0x06, 1, [iova(&page)?, 0], [0, 0, 0]))?;
    let mut format = [0];
    page.read(26, &mut format);
    let shift = page.load32(128 + 4 * usize::from(format[0] & 0xf)) >> 16 & 0xff;
    println!("namespace: {} blocks of {} bytes", page.load64(0), 1 << shift);
    Ok(Disk { shift, has_descriptors: sgls & 3 != 0, has_shadow: oacs & 1 << 8 != 0 })
}

/// A pair of I/O queues whose completions ring `vector`.
fn create(admin: &mut Queues, id: u16, vector: u16, pool: &Pool) -> Result<Queues> {
    let queues = Queues::new(id, pool, &admin.registers)?;
    let size = (DEPTH - 1) << 16 | u32::from(id);
    let with_interrupt = u32::from(vector) << 16 | 3;
    admin.succeed("CREATE CQ", command(0x05, 0, [iova(&queues.cq)?, 0], [size, with_interrupt, 0]))?;
    admin.succeed("CREATE SQ", command(0x01, 0, [iova(&queues.sq)?, 0], [size, u32::from(id) << 16 | 1, 0]))?;
    Ok(queues)
}

/// Whether a block has the words of a byte offset of the disk.
fn check(page: &DeviceBuf, offset: u64) -> Result<()> {
    let wrong = (0..BLOCK).step_by(8).find(|at| page.load64(*at) != offset + *at as u64);
    wrong.map_or(Ok(()), |at| {
        Err(format!("offset {:#x} has the word {:#x}", offset + at as u64, page.load64(at)).into())
    })
}

fn data(disk: &Disk, queues: &mut Queues, pool: &Pool) -> Result<()> {
    let page = memory(pool, BLOCK)?;
    for (what, by_descriptor, offset) in [("prp", false, 0x4000), ("sgl", true, 0x9000)] {
        if by_descriptor && !disk.has_descriptors {
            println!("sgl: not supported");
            continue;
        }
        page.zero();
        let (_, took) = queues.succeed(what, read(disk, offset, iova(&page)?, by_descriptor))?;
        check(&page, offset)?;
        println!("{what}: 4 KiB are right ({} us)", took / 1000);
    }
    Ok(())
}

/// A vector rings; masked in the table it does not, and with the mask off what was due comes.
fn interrupts(disk: &Disk, queues: &mut Queues, pool: &Pool, device: &Device, rung: &Receiver<u64>) -> Result<()> {
    let page = memory(pool, BLOCK)?;
    // Of the reads before this.
    while rung.recv_timeout(QUIET).is_ok() {}
    let start = monotonic_ns();
    queues.succeed("read", read(disk, 0, iova(&page)?, false))?;
    let count = rung.recv_timeout(QUIET).map_err(|_| "no interrupt after a read")?;
    say("interrupt", start, format_args!("{count}"));
    if !device.mask(1, true) {
        println!("mask: the table cannot be mapped");
        return Ok(());
    }
    for _ in 0..3 {
        queues.succeed("read", read(disk, 0, iova(&page)?, false))?;
    }
    if rung.recv_timeout(QUIET).is_ok() {
        return Err("an interrupt of a masked vector".into());
    }
    println!("masked: no interrupt of 3 reads in {} ms", QUIET.as_millis());
    let start = monotonic_ns();
    device.mask(1, false);
    let count = rung.recv_timeout(QUIET).map_err(|_| "nothing was delivered with the mask off")?;
    say("unmasked", start, format_args!("{count} interrupt for 3 reads"));
    let start = monotonic_ns();
    for _ in 0..1000 {
        device.mask(1, true);
        device.mask(1, false);
    }
    println!("mask: {} ns to switch", (monotonic_ns() - start) / 2000);
    Ok(())
}

/// Reads with shadow doorbells on a pair of queues of their own.
fn shadow(disk: &Disk, admin: &mut Queues, pool: &Pool) -> Result<()> {
    if !disk.has_shadow {
        println!("shadow: not supported");
        return Ok(());
    }
    let (doorbells, events) = (memory(pool, BLOCK)?, memory(pool, BLOCK)?);
    let pointer = [iova(&doorbells)?, iova(&events)?];
    admin.succeed("DOORBELL BUFFER CONFIG", command(0x7c, 0, pointer, [0, 0, 0]))?;
    let mut queues = create(admin, 2, 1, pool)?;
    queues.shadow = Some((doorbells, events));
    let page = memory(pool, BLOCK)?;
    let (rounds, batch) = (16, 8);
    for round in 0..rounds {
        let offset = round * BLOCK as u64;
        for _ in 0..batch {
            queues.submit(read(disk, offset, iova(&page)?, false));
        }
        for _ in 0..batch {
            let (_, status) = queues.answer()?;
            if status != 0 {
                return Err(format!("read with shadow doorbells: status {status:#x}").into());
            }
        }
        check(&page, offset)?;
    }
    println!("shadow: {} doorbells for {} commands and as many completions", queues.rung, rounds * batch);
    Ok(())
}

/// The disk reads to where nothing is mapped.
fn stray(disk: &Disk, queues: &mut Queues, memory: &Memory) -> Result<()> {
    // A page of the window that the arena has not grown to.
    let nowhere = memory.space.window().end + 1 - BLOCK as u64;
    let (result, status) = queues.run(read(disk, 0, nowhere, false))?;
    println!("stray: a read to {nowhere:#x} ended with status {status:#x}, result {result:#x}");
    Ok(())
}

/// Waits until the kernel wants the function back, and says how often it has asked within a second.
fn unplug(device: &Device) -> Result<()> {
    let doorbell = eventfd()?;
    device.on_request(doorbell.descriptor()?.as_fd())?;
    let asked = rings(&doorbell)?;
    println!("unplug: waiting");
    asked.recv_timeout(Duration::from_nanos(PATIENCE_NS)).map_err(|_| "nobody has asked for it")?;
    let start = monotonic_ns();
    let mut count = 1;
    while monotonic_ns() - start < 1_000_000_000 {
        count += asked.recv_timeout(Duration::from_millis(100)).unwrap_or(0);
    }
    println!("unplug: asked for {count} times in a second");
    let before = device.registers().read32(CSTS);
    device.blind()?;
    println!("unplug: CSTS {before:#x}, blinded {:#x}", device.registers().read32(CSTS));
    Ok(())
}

fn probe(address: Address, wish: Option<&str>) -> Result<()> {
    let pci = Pci::new();
    let seen = pci.function(address)?;
    println!("function: {seen:?}");
    let begin = monotonic_ns();
    let taken = pci.bind(&seen)?;
    say("bind", begin, format_args!("{taken:?}"));
    let begin = monotonic_ns();
    let container = Container::open(&pci)?;
    let group = container.group(&pci.function(address)?)?;
    say("container", begin, format_args!("group {}, {:x?}", group.number(), container.iommu()?));
    let memory = map(&pci, container)?;
    let pool = &memory.pool;
    let (device, mut admin) = start(&group, address, pool)?;
    let (first, second) = (eventfd()?, eventfd()?);
    device.enable_vectors(2)?;
    device.set_vector(0, Some(first.descriptor()?.as_fd()))?;
    device.set_vector(1, Some(second.descriptor()?.as_fd()))?;
    let disk = identify(&mut admin, pool)?;
    admin.succeed("SET FEATURES", command(0x09, 0, [0, 0], [0x07, 0x0001_0001, 0]))?;
    let mut queues = create(&mut admin, 1, 1, pool)?;
    data(&disk, &mut queues, pool)?;
    interrupts(&disk, &mut queues, pool, &device, &rings(&second)?)?;
    if wish == Some("--stray") {
        stray(&disk, &mut queues, &memory)?;
    }
    shadow(&disk, &mut admin, pool)?;
    device.disable_vectors()?;
    device
        .on_error(first.descriptor()?.as_fd())
        .map_or_else(|why| println!("errors: {why}"), |()| println!("errors: told"));
    let begin = monotonic_ns();
    device.reset()?;
    let registers = device.registers();
    let (cc, csts) = (registers.read32(CC), registers.read32(CSTS));
    say("reset", begin, format_args!("CC {cc:#x}, CSTS {csts:#x}, bus master: {}", device.is_bus_master()?));
    if wish == Some("--unplug") {
        return unplug(&device);
    }
    // Everything of the group is closed, and opened again: what was mapped is mapped again, at the same addresses.
    drop((device, admin, queues, group));
    let group = memory.container.group(&pci.function(address)?)?;
    let (device, mut admin) = start(&group, address, pool)?;
    identify(&mut admin, pool)?;
    drop(device);
    // Its registers are still mapped, so the kernel has not closed it.
    let mut command = [0; 2];
    let config = pci.path(&format!("sys/bus/pci/devices/{address}/config"));
    File::open(config)?.read_exact_at(&mut command, 4)?;
    println!("dropped: command register {:#x}, CSTS {:#x}", u16::from_le_bytes(command), admin.registers.read32(CSTS));
    if command[0] & 4 != 0 {
        return Err("a function that was dropped is bus master".into());
    }
    drop((admin, group, memory));
    let begin = monotonic_ns();
    let back = pci.unbind(&pci.function(address)?)?;
    say("unbind", begin, format_args!("{back:?}"));
    println!("probe: done");
    Ok(())
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let run = || {
        let address = words.first().ok_or("usage: nvme_probe 0000:01:00.0 [--stray | --unplug]")?.parse()?;
        probe(address, words.get(1).map(String::as_str))
    };
    run().map_or_else(|why| (eprintln!("nvme_probe: {why}"), ExitCode::FAILURE).1, |()| ExitCode::SUCCESS)
}
