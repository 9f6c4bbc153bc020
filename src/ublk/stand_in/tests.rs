use std::cell::RefCell;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU8;

use hugepages::Buf;

use super::*;
use crate::bdev::Handle;
use crate::bdev::device::custom::{self, Custom};
use crate::bdev::device::file;
use crate::bdev::device::malloc::{Malloc, Options};
use crate::bdev::device::testing::two_reactors;
use crate::reactor::Sink;
use crate::reactor::io::{IoStatus, Segment};
use crate::reactor::start::solo;
use crate::sys::op::{Completion, Owner, Payload, UblkCommand, UblkStep};
use crate::ublk::queue;

#[test]
fn requests_are_answered_from_and_to_the_volume_for_each_tag() {
    let (_open, in_memory) = memory_file(1 << 20);
    // 7 requests, and so many that their copies are made together.
    for (device, depth) in [(ram(1 << 20), 7), (ram(1 << 20), 64), (in_memory.clone(), 7), (in_memory, 64)] {
        requests_are_answered(&device, depth);
    }
}

fn requests_are_answered(device: &Arc<dyn BlockDevice>, depth: u16) {
    let reactor = solo(32 << 20).unwrap();
    let len = 4096;
    let bytes = |tag: u16| vec![tag as u8 + 1; len as usize];
    for op in [IoOp::WRITE, IoOp::READ] {
        let stand_in = StandIn::open(&reactor, device, Load { depth, op, len }).unwrap();
        if op == IoOp::WRITE {
            for tag in 0..depth {
                let (memory, at) = stand_in.data(tag);
                memory.write_all_at(&bytes(tag), at).unwrap();
            }
        }
        let handle = Handle::open(&reactor, device).unwrap();
        let before = handle.stats().total().ios;
        while handle.stats().total().ios - before < 20 * u64::from(depth) {
            reactor.turn();
        }
        stand_in.stop();
        while !stand_in.has_ended().unwrap() {
            reactor.turn();
        }
        if op == IoOp::READ {
            for tag in 0..depth {
                let (memory, at) = stand_in.data(tag);
                let mut found = vec![0; len as usize];
                memory.read_exact_at(&mut found, at).unwrap();
                assert_eq!(found, bytes(tag), "tag {tag}");
            }
        }
    }
    assert_eq!(reactor.shut_down(), 0);
}

/// Until the volume's home answers, nobody knows whether it has the ranges of writes held for somebody else.
#[test]
fn writes_that_arrive_together_wait_for_whoever_holds_their_ranges() {
    const DEPTH: u16 = 64;
    const LEN: usize = 4096;
    let data = |tag: u16| vec![tag as u8 + 1; LEN];
    let reactors = two_reactors();
    let (here, home) = (&reactors.remotes()[0], &reactors.remotes()[1]);
    let device = ram_at(usize::from(DEPTH) * LEN, 1);
    let (answer, answered) = mpsc::channel::<()>();
    let (entered, inside) = mpsc::channel();
    home.send(Box::new(move |_| {
        entered.send(()).unwrap();
        answered.recv().unwrap_or_default();
    }));
    // What reactors send each other may overtake what others send them.
    inside.recv().unwrap();
    let served = device.clone();
    here.ask(move |reactor| {
        let load = Load { depth: DEPTH, op: IoOp::WRITE, len: LEN as u32 };
        let stand_in = StandIn::open(reactor, &served, load).unwrap();
        for tag in 0..DEPTH {
            let (memory, at) = stand_in.data(tag);
            memory.write_all_at(&data(tag), at).unwrap();
        }
        reactor.set_service(Rc::new(stand_in));
    });
    let read_all = || {
        let (sender, receiver) = mpsc::channel();
        let device = device.clone();
        here.send(Box::new(move |reactor| {
            let (handle, here) = (Handle::open(reactor, &device).unwrap(), reactor.clone());
            reactor.spawn("test", async move {
                let mut io = here.create_io().unwrap();
                io.data.push_buf(here.pool().alloc(usize::from(DEPTH) * LEN).unwrap());
                io.prepare(crate::reactor::io::IoOp::Read, 0, u64::from(DEPTH) * LEN as u64);
                let mut io = handle.execute(io).await;
                let Some(Segment::Buf(buf)) = io.data.pop() else { panic!("a buffer went in") };
                sender.send(buf.to_vec()).unwrap();
                here.retire_io(io);
            });
        }));
        receiver.recv().unwrap()
    };
    let ends = move |reactor: &Rc<Reactor>| reactor.service::<StandIn>().unwrap().has_ended().unwrap();
    let working = || here.ask(|reactor| queue::working(reactor, 0));
    while working() != Some(usize::from(DEPTH)) {}
    // Reads wait for the home too: whether something was written cannot be seen, that nothing has ended can.
    assert!((0..50).all(|_| working() == Some(usize::from(DEPTH))), "written without the home's word");
    answer.send(()).unwrap();
    let expected: Vec<u8> = (0..DEPTH).flat_map(data).collect();
    while read_all() != expected {}
    here.ask(|reactor| reactor.service::<StandIn>().unwrap().stop());
    while here.ask(ends) != Some(true) {}
    assert_eq!(reactors.stop(), 0);
}

/// Gets the commands of a reactor's queues, if it is a service of that, and ends them when a test has a request for them.
#[derive(Default)]
pub struct Kernel(RefCell<Vec<UblkCommand>>);

impl Kernel {
    pub fn take(&self, command: UblkCommand) {
        self.0.borrow_mut().push(command);
    }
}

/// Bytes of the volume, and more than the largest request.
const SIZE: usize = 256 << 10;
const LONGEST: usize = 128 << 10;
/// What lies where nobody may write.
const CANARY: u8 = 0xC5;

/// A volume to which bytes have to be brought.
struct Bytes(Vec<AtomicU8>);

impl custom::Disk for Bytes {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), IoStatus> {
        into.iter_mut().zip(&self.0[offset as usize..]).for_each(|(to, from)| *to = from.load(Ordering::Relaxed));
        Ok(())
    }
    fn writable(&self) -> bool {
        true
    }
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), IoStatus> {
        from.iter().zip(&self.0[offset as usize..]).for_each(|(from, to)| to.store(*from, Ordering::Relaxed));
        Ok(())
    }
}

/// A volume in a file in memory, which is there as long as it is open.
fn memory_file(size: u64) -> (File, Arc<dyn BlockDevice>) {
    let file = File::from(memfd_create("volume", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    let options = file::Options {
        name: "in memory".to_owned(),
        uuid: [2; 16],
        path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
        size,
        block_size: 512,
        physical_block_size: 512,
        direct: true,
        home: 0,
    };
    let device = file::File::create(options).unwrap();
    (file, Arc::new(device))
}

fn ram(size: usize) -> Arc<dyn BlockDevice> {
    ram_at(size, 0)
}

fn ram_at(size: usize, home: u16) -> Arc<dyn BlockDevice> {
    let options = Options {
        name: "ram".to_owned(),
        uuid: [0; 16],
        size: size as u64,
        block_size: 512,
        physical_block_size: 512,
        hugepages: false,
        home,
    };
    Arc::new(Malloc::new(options).unwrap())
}

fn bytes(size: usize) -> Arc<dyn BlockDevice> {
    let options = custom::Options { name: "bytes".to_owned(), uuid: [1; 16], home: 0 };
    Arc::new(Custom::new(options, Bytes((0..size).map(|_| AtomicU8::new(0)).collect())).unwrap())
}

/// A queue of one tag, the kernel on its other side, and what the volume has to hold.
struct OneTag {
    reactor: Rc<Reactor>,
    kernel: Rc<Kernel>,
    memory: File,
    travel: Travel,
    model: Vec<u8>,
    /// The fetch or commit that waits for the next request.
    waiting: UblkCommand,
    state: u64,
}

impl OneTag {
    fn open(device: &Arc<dyn BlockDevice>, travel: Travel) -> OneTag {
        let reactor = solo(32 << 20).unwrap();
        let kernel = Rc::<Kernel>::default();
        reactor.set_service(kernel.clone());
        let (memory, commands) = files(Load { depth: 1, op: IoOp::FLUSH, len: LONGEST as u32 }).unwrap();
        let options = QueueOptions {
            device: device.clone(),
            device_number: 0,
            requests: Requests::stand_in(memory.try_clone().unwrap(), commands),
            number: 0,
            depth: 1,
            travel,
            read_only: false,
            leaving: Arc::default(),
            faults: mpsc::channel().0,
        };
        Queue::open(&reactor, options).unwrap();
        let mut tag =
            OneTag { reactor, kernel, memory, travel, model: vec![0; SIZE], waiting: idle(), state: 0x9E37_79B9 };
        tag.waiting = tag.command();
        assert_eq!(tag.waiting.step, UblkStep::Fetch);
        tag
    }

    /// A number below `end`.
    fn chance(&mut self, end: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state % end as u64) as usize
    }

    fn fresh(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.chance(256) as u8).collect()
    }

    /// The next command of the tag.
    fn command(&self) -> UblkCommand {
        for _ in 0..1000 {
            if let Some(command) = self.kernel.0.borrow_mut().pop() {
                return command;
            }
            self.reactor.turn();
        }
        panic!("the tag waits for something");
    }

    fn describe(&self, op: IoOp, offset: usize, len: usize) {
        let descriptor = IoDesc {
            op_flags: u32::from(op.0),
            nr_sectors: (len / 512) as u32,
            start_sector: (offset / 512) as u64,
            addr: 0,
        };
        self.memory.write_all_at(descriptor.as_bytes(), 0).unwrap();
    }

    /// Ends the command that waits.
    fn complete(&self, result: i32, buf: Option<Buf>) {
        let owner = Owner { sink: 0, tag: 0 };
        let payload = buf.map_or(Payload::None, Payload::Buf);
        queue::all(&self.reactor)[0].completed(0, Completion { owner, result, payload });
    }

    /// The data of the request as the kernel has it in user copy.
    fn set_data(&self, data: &[u8]) {
        let mut all = vec![CANARY; LONGEST];
        all[..data.len()].copy_from_slice(data);
        self.memory.write_all_at(&all, wire::io_buf_position(0, 0)).unwrap();
    }

    fn data(&self) -> Vec<u8> {
        let mut all = vec![0; LONGEST];
        self.memory.read_exact_at(&mut all, wire::io_buf_position(0, 0)).unwrap();
        all
    }

    /// Answers that the data of a write is to be asked for, and takes the question: the buffer to bring it in.
    fn ask_for_data(&self, offset: usize, len: usize) -> Buf {
        self.describe(IoOp::WRITE, offset, len);
        self.complete(wire::IO_RES_NEED_GET_DATA, None);
        let command = self.command();
        let buf = command.buf.expect("memory for the data");
        assert_eq!((command.step, buf.len()), (UblkStep::GetData, len));
        buf
    }

    /// Has the tag carry out a request; its result.
    fn carry_out(&mut self, op: IoOp, offset: usize, len: usize, data: &[u8]) -> i32 {
        self.set_data(if self.travel == Travel::ByServer { data } else { &[] });
        if self.travel == Travel::ByKernel && op == IoOp::WRITE {
            let mut buf = self.ask_for_data(offset, len);
            buf.copy_from_slice(data);
            self.complete(wire::IO_RES_OK, Some(buf));
        } else {
            self.describe(op, offset, len);
            self.complete(wire::IO_RES_OK, None);
        }
        self.commit()
    }

    fn commit(&mut self) -> i32 {
        self.waiting = self.command();
        assert_eq!(self.waiting.step, UblkStep::Commit);
        self.waiting.result
    }

    /// What a read has brought, as a user of the disk gets it.
    fn brought(&self, len: usize) -> Vec<u8> {
        match self.travel {
            Travel::ByKernel => self.waiting.buf.as_ref().expect("a commit of a read has a buffer")[..len].to_vec(),
            _ => self.data()[..len].to_vec(),
        }
    }

    /// One turn: a request of any kind, and what has to come of it.
    fn turn(&mut self) {
        let ops = [
            IoOp::READ,
            IoOp::READ,
            IoOp::WRITE,
            IoOp::WRITE,
            IoOp::FLUSH,
            IoOp::DISCARD,
            IoOp::WRITE_ZEROES,
            IoOp(0x7F),
        ];
        let op = ops[self.chance(ops.len())];
        let sectors = [1, 2, 7, 8, 16, 33, 64, 256][self.chance(8)];
        let len = if op == IoOp::FLUSH { 0 } else { sectors * 512 };
        // Some are beyond the end, at least by their last sector.
        let offset = self.chance((SIZE + LONGEST) / 512) * 512;
        let fits = offset + len <= SIZE;
        let data = if op == IoOp::WRITE { self.fresh(len) } else { Vec::new() };
        let result = self.carry_out(op, offset, len, &data);
        let case = format!("{:?}, {op:?} of {len} at {offset}", self.travel);
        match op {
            IoOp(0x7F) => assert_eq!(result, -libc::EOPNOTSUPP, "{case}"),
            IoOp::FLUSH => assert_eq!(result, 0, "{case}"),
            _ if !fits => assert_eq!(result, -libc::EIO, "{case}"),
            IoOp::READ => {
                assert_eq!(result, len as i32, "{case}");
                assert!(self.brought(len) == self.model[offset..offset + len], "{case}: other bytes");
            }
            IoOp::WRITE => {
                assert_eq!(result, len as i32, "{case}");
                self.model[offset..offset + len].copy_from_slice(&data);
            }
            _ => {
                assert_eq!(result, 0, "{case}");
                self.model[offset..offset + len].fill(0);
            }
        }
        let given = if op == IoOp::READ && fits && self.travel == Travel::ByServer { len } else { data.len() };
        if self.travel == Travel::ByServer {
            assert!(self.data()[given..].iter().all(|byte| *byte == CANARY), "{case}: bytes that nobody asked for");
        } else {
            assert!(op == IoOp::READ || self.waiting.buf.is_none(), "{case}: a commit brings bytes");
        }
    }

    /// Ends the tag, and all else.
    fn close(self) {
        self.complete(wire::IO_RES_ABORT, None);
        while !queue::all(&self.reactor).is_empty() {
            self.reactor.turn();
        }
        drop(self.waiting);
        assert_eq!(self.reactor.shut_down(), 0, "buffers are still out");
    }
}

fn idle() -> UblkCommand {
    UblkCommand { step: UblkStep::Fetch, queue: 0, tag: 0, result: 0, place: None, buf: None }
}

#[test]
fn a_tag_takes_requests_of_every_kind_in_turn_and_mixes_up_no_bytes() {
    for travel in [Travel::ByServer, Travel::ByKernel] {
        for device in [ram(SIZE), bytes(SIZE)] {
            let mut tag = OneTag::open(&device, travel);
            for _ in 0..1000 {
                tag.turn();
            }
            for offset in (0..SIZE).step_by(LONGEST) {
                assert_eq!(tag.carry_out(IoOp::READ, offset, LONGEST, &[]), LONGEST as i32);
                assert!(tag.brought(LONGEST) == tag.model[offset..offset + LONGEST], "{travel:?}: at {offset}");
            }
            tag.close();
        }
    }
}

#[test]
fn a_request_that_was_put_back_leaves_nothing_to_the_next() {
    let device = ram(SIZE);
    let mut tag = OneTag::open(&device, Travel::ByKernel);
    // The data of a write is asked for, and there is another in its place, longer or shorter; and so on.
    for (first, second) in [(4096, 8192), (8192, 512), (4096, 4096)] {
        let mut buf = tag.ask_for_data(0, first);
        buf.fill(0xAA);
        tag.describe(IoOp::WRITE, 16384, second);
        tag.complete(wire::IO_RES_NEED_GET_DATA, Some(buf));
        let mut buf = tag.command().buf.expect("memory for the data");
        assert_eq!(buf.len(), second, "of the request that is there now");
        buf.fill(0xBB);
        tag.complete(wire::IO_RES_OK, Some(buf));
        assert_eq!(tag.commit(), second as i32);
        assert_eq!(tag.carry_out(IoOp::READ, 16384, second, &[]), second as i32);
        assert!(tag.brought(second).iter().all(|byte| *byte == 0xBB));
    }
    // A read in its place gets the volume's bytes, not those.
    let mut buf = tag.ask_for_data(0, 4096);
    buf.fill(0xAA);
    tag.describe(IoOp::READ, 65536, 4096);
    tag.complete(wire::IO_RES_OK, Some(buf));
    assert_eq!(tag.commit(), 4096);
    assert!(tag.brought(4096).iter().all(|byte| *byte == 0));
    // A write in its place that is longer than what was copied is not carried out.
    let mut buf = tag.ask_for_data(0, 4096);
    buf.fill(0xAA);
    tag.describe(IoOp::WRITE, 131_072, 8192);
    tag.complete(wire::IO_RES_OK, Some(buf));
    assert_eq!(tag.commit(), -libc::EIO);
    for offset in [0, 131_072] {
        assert_eq!(tag.carry_out(IoOp::READ, offset, 8192, &[]), 8192);
        assert!(tag.brought(8192).iter().all(|byte| *byte == 0), "at {offset}");
    }
    tag.close();
}
