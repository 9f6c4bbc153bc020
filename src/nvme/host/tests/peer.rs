//! A small controller on threads of its own: a RAM namespace that does what is asked of it, or what a test wants to go wrong.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicUsize, Ordering};

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::nvme::spec::*;
use crate::nvme::tcp::*;

#[expect(clippy::disallowed_types, reason = "threads of a test share a RAM disk")]
type Mutex<T> = std::sync::Mutex<T>;

pub const SUBNQN: &str = "nqn.2026-11.io.reactor:peer";
pub const CNTLID: u16 = 7;

/// What goes wrong, at the first I/O command of a kind, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// A read is answered under an identifier that no command has.
    UnknownCid,
    /// A read is answered twice.
    AnsweredTwice,
    /// A read gets half of its data and success.
    ShortData,
    /// A read gets data beyond its buffer.
    DataBeyond,
    /// Data of a read is damaged behind the digest.
    DamagedData,
    /// A response is damaged behind the header digest.
    DamagedHeader,
    /// The peer terminates the connection.
    Terminates,
    /// The connection closes in the middle of a read's data.
    ClosesInData,
    /// No answer to a read.
    Silence,
    /// An R2T for more than the command has.
    R2tBeyond,
    /// An R2T that leaves out the start of the data.
    R2tGap,
    /// More R2Ts at a time than the host allows.
    TooManyR2ts,
    /// A write gets an R2T for half of its data, then an error.
    WriteEndsEarly,
    /// SUCCESS flag although flow control is in use.
    SuccessFlag,
    /// A head pointer beyond the queue.
    Sqhd,
    /// Compare fails.
    Compare,
}

#[derive(Clone, Debug)]
pub struct Config {
    pub digests: bool,
    pub block_shift: u8,
    pub in_capsule: u32,
    pub max_h2c_data: u32,
    pub r2t_len: u32,
    pub r2ts: usize,
    pub c2h_len: usize,
    /// Grant the wish to do without flow control.
    pub no_flow: bool,
    /// Answers to what arrived together leave in reverse order.
    pub reverse: bool,
    pub fault: Fault,
    pub mdts: u8,
    /// It has Verify, with this limit; `None`: neither the command nor limits of the NVM command set, as before NVMe 2.0.
    pub vsl: Option<u8>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            digests: true,
            block_shift: 9,
            in_capsule: 4096,
            max_h2c_data: 131_072,
            r2t_len: 131_072,
            r2ts: 1,
            c2h_len: 1 << 20,
            no_flow: true,
            reverse: false,
            fault: Fault::None,
            mdts: 8,
            vsl: None,
        }
    }
}

/// What the peer saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub keep_alives: AtomicUsize,
    pub connections: AtomicUsize,
    pub flushes: AtomicUsize,
    pub fua: AtomicUsize,
    pub unmaps: AtomicUsize,
    pub largest_h2c: AtomicU32,
    pub in_capsule_writes: AtomicUsize,
    pub granted_writes: AtomicUsize,
    pub fused: AtomicUsize,
    pub verifies: AtomicUsize,
    pub shutdowns: AtomicUsize,
    /// Fatal Error Status of the last termination request from the host.
    pub terminated: AtomicU32,
    pub ended: AtomicUsize,
}

pub struct Peer {
    pub address: SocketAddr,
    pub config: Config,
    pub disk: Mutex<Vec<u8>>,
    pub seen: Seen,
    pub generation: AtomicU32,
    fault_done: AtomicBool,
    /// Admin connection and identifier of the outstanding event request.
    event: Mutex<Option<(TcpStream, u16, Arc<AtomicU16>)>>,
}

impl Peer {
    /// Listens on loopback and serves until the process ends.
    pub fn start(config: Config) -> Arc<Peer> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = Arc::new(Peer {
            address: listener.local_addr().unwrap(),
            config,
            disk: Mutex::new(vec![0; 8 << 20]),
            seen: Seen::default(),
            generation: AtomicU32::new(1),
            fault_done: AtomicBool::new(false),
            event: Mutex::new(None),
        });
        let this = peer.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let peer = this.clone();
                peer.seen.connections.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    // A broken connection ends its thread: most faults end that way.
                    let _ = Connection::new(peer.clone(), stream.unwrap()).serve();
                    peer.seen.ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        peer
    }

    pub fn fault(&self, fault: Fault) -> bool {
        self.config.fault == fault && !self.fault_done.swap(true, Ordering::SeqCst)
    }

    /// Answers the outstanding event request; `false` if there is none.
    pub fn notify(&self, event: AsyncEventResult) -> bool {
        let Some((mut stream, cid, head)) = self.event.lock().unwrap().take() else {
            return false;
        };
        let framing = Framing::new(Role::Controller, &NO_DIGESTS);
        let mut out = [0; MAX_PREFIX_LEN];
        let mut cqe = Cqe::with_result(cid, u64::from(event.to_dword()));
        cqe.sqhd.set(head.load(Ordering::SeqCst));
        let len = framing.capsule_resp(&cqe, &mut out);
        stream.write_all(&out[..len]).unwrap();
        true
    }
}

const NO_DIGESTS: Negotiated =
    Negotiated { header_digest: false, data_digest: false, hpda_z: 0, cpda_z: 0, max_h2c_data: 4096, max_r2t: 1 };

struct Writing {
    sqe: Sqe,
    data: Vec<u8>,
    granted: u32,
    grants: VecDeque<WriteGrant>,
}

struct Connection {
    peer: Arc<Peer>,
    stream: TcpStream,
    decoder: Decoder,
    framing: Framing,
    max_r2t: usize,
    qid: u16,
    size: u16,
    head: Arc<AtomicU16>,
    /// The first I/O command has come: faults may begin.
    begun: bool,
    no_flow: bool,
    ready: bool,
    shutdown: bool,
    writing: BTreeMap<u16, Writing>,
    next_ttag: u16,
    /// The data of a fused compare that waits for its write, and the verdict.
    compared: Option<(u16, bool)>,
    answers: Vec<Vec<u8>>,
}

type End = std::io::Result<()>;

impl Connection {
    fn new(peer: Arc<Peer>, stream: TcpStream) -> Connection {
        stream.set_nodelay(true).unwrap();
        let limits = Limits { in_capsule: 8192, data: peer.config.max_h2c_data, alignment_z: 0 };
        Connection {
            stream,
            decoder: Decoder::new(Role::Controller, limits),
            framing: Framing::new(Role::Controller, &NO_DIGESTS),
            max_r2t: 1,
            qid: 0,
            size: 1,
            head: Arc::default(),
            begun: false,
            no_flow: false,
            ready: false,
            shutdown: false,
            writing: BTreeMap::new(),
            next_ttag: 100,
            compared: None,
            answers: Vec::new(),
            peer,
        }
    }

    fn serve(mut self) -> End {
        let mut buf = vec![0; 256 * 1024];
        let mut header: Option<(Option<Sqe>, u16)> = None;
        let mut data = Vec::new();
        loop {
            let n = self.stream.read(&mut buf)?;
            if n == 0 {
                return Ok(());
            }
            let mut input = &buf[..n];
            loop {
                let event = match self.decoder.next(&mut input) {
                    Ok(None) => break,
                    Ok(Some(event)) => event,
                    Err(error) => panic!("the host broke the protocol: {error}"),
                };
                match event {
                    Event::IcReq(request) => self.initialize(&request)?,
                    Event::Command { sqe, data_len: 0 } => self.command(sqe, Vec::new())?,
                    Event::Command { sqe, .. } => header = Some((Some(sqe), 0)),
                    Event::H2cData(pdu) => {
                        let writing = self.writing.get_mut(&pdu.cccid.get()).expect("data of a command in flight");
                        let grant = writing.grants.iter_mut().find(|g| g.ttag == pdu.ttag.get()).expect("a grant");
                        grant.accept(&pdu).unwrap();
                        self.peer.seen.largest_h2c.fetch_max(pdu.datal.get(), Ordering::SeqCst);
                        header = Some((None, pdu.cccid.get()));
                    }
                    Event::Data(bytes) => data.extend_from_slice(bytes),
                    Event::DataEnd { digest_ok } => {
                        assert!(digest_ok, "the host's data digest");
                        let bytes = std::mem::take(&mut data);
                        match header.take().unwrap() {
                            (Some(sqe), _) => {
                                self.peer.seen.in_capsule_writes.fetch_add(1, Ordering::SeqCst);
                                self.command(sqe, bytes)?;
                            }
                            (None, cid) => self.granted_data(cid, &bytes)?,
                        }
                    }
                    Event::Term { status, .. } => {
                        self.peer.seen.terminated.store(u32::from(status.0), Ordering::SeqCst);
                        return Ok(());
                    }
                    other => panic!("{other:?} from a host"),
                }
            }
            self.flush()?;
        }
    }

    fn flush(&mut self) -> End {
        if self.peer.config.reverse {
            self.answers.reverse();
        }
        let all: Vec<u8> = self.answers.drain(..).flatten().collect();
        self.stream.write_all(&all)
    }

    fn initialize(&mut self, request: &IcRequest) -> End {
        let config = &self.peer.config;
        let ours = ControllerParams {
            header_digest: config.digests,
            data_digest: config.digests,
            cpda_z: 0,
            max_h2c_data: config.max_h2c_data,
        };
        let (response, agreed) = accept(request, &ours);
        self.decoder.set_digests(agreed.header_digest, agreed.data_digest);
        self.framing = Framing::new(Role::Controller, &agreed);
        self.max_r2t = agreed.max_r2t as usize;
        let mut out = [0; MAX_PREFIX_LEN];
        let len = ic_resp(&response, &mut out);
        self.stream.write_all(&out[..len])
    }

    fn respond(&mut self, cqe: Cqe) {
        self.respond_with(Vec::new(), cqe);
    }

    /// Queues PDUs, then a response.
    fn respond_with(&mut self, mut bytes: Vec<u8>, mut cqe: Cqe) {
        let head = (self.head.load(Ordering::SeqCst) + 1) % self.size;
        self.head.store(head, Ordering::SeqCst);
        let bad_head = self.begun && self.peer.fault(Fault::Sqhd);
        cqe.sqhd.set(if bad_head {
            self.size
        } else if self.no_flow {
            u16::MAX
        } else {
            head
        });
        let mut out = [0; MAX_PREFIX_LEN];
        let len = self.framing.capsule_resp(&cqe, &mut out);
        if self.begun && self.peer.fault(Fault::DamagedHeader) {
            out[9] ^= 0xff;
        }
        bytes.extend_from_slice(&out[..len]);
        self.answers.push(bytes);
    }

    fn data_pdus(&self, cid: u16, data: &[u8], success: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut offset = 0;
        for piece in data.chunks(self.peer.config.c2h_len) {
            let mut out = [0; MAX_PREFIX_LEN];
            let last = offset + piece.len() == data.len();
            let (at, n) = (offset as u32, piece.len() as u32);
            let len = self.framing.c2h_data(cid, at, n, last, success && last, &mut out);
            bytes.extend_from_slice(&out[..len]);
            bytes.extend_from_slice(piece);
            if self.framing.data_digest() {
                bytes.extend_from_slice(&crc32c(piece).to_le_bytes());
            }
            offset += piece.len();
        }
        bytes
    }

    /// Answers with data and success.
    fn send_data(&mut self, cid: u16, data: &[u8]) {
        let success = self.no_flow || self.begun && self.peer.fault(Fault::SuccessFlag);
        let bytes = self.data_pdus(cid, data, success);
        if success {
            self.answers.push(bytes);
        } else {
            self.respond_with(bytes, Cqe::new(cid, Status::SUCCESS));
        }
    }

    fn command(&mut self, sqe: Sqe, data: Vec<u8>) -> End {
        let wants_r2t = sqe.dptr.id == SglId::TRANSPORT_DATA_BLOCK
            && Direction::of(if sqe.is_fabrics() { sqe.nsid.get() as u8 } else { sqe.opcode })
                == Direction::HostToController
            && sqe.dptr.length.get() > 0;
        if wants_r2t {
            let len = sqe.dptr.length.get() as usize;
            let (granted, grants) = (0, VecDeque::new());
            self.writing.insert(sqe.cid.get(), Writing { sqe, data: vec![0; len], granted, grants });
            return self.grant(sqe.cid.get());
        }
        self.execute(sqe, &data)
    }

    fn grant(&mut self, cid: u16) -> End {
        let config = self.peer.config.clone();
        let mut out = [0; MAX_PREFIX_LEN];
        let write = self.writing.get_mut(&cid).unwrap();
        let total = write.data.len() as u32;
        let mut most = config.r2ts.min(self.max_r2t);
        if self.peer.fault(Fault::TooManyR2ts) {
            most = self.max_r2t + 1;
        }
        if self.peer.fault(Fault::R2tBeyond) {
            let len = self.framing.r2t(cid, 1, 0, total + 4, &mut out);
            return self.stream.write_all(&out[..len]);
        }
        if self.peer.fault(Fault::R2tGap) {
            let len = self.framing.r2t(cid, 1, 4, total - 4, &mut out);
            return self.stream.write_all(&out[..len]);
        }
        if self.peer.fault(Fault::WriteEndsEarly) {
            let mut bytes = Vec::new();
            let len = self.framing.r2t(cid, 1, 0, total / 2, &mut out);
            bytes.extend_from_slice(&out[..len]);
            write.grants.push_back(WriteGrant::new(cid, 1, 0, total / 2));
            write.granted = total;
            // The data of the R2T still arrives; nobody waits for it.
            self.respond_with(bytes, Cqe::new(cid, StatusCode::CAPACITY_EXCEEDED.dnr()));
            return Ok(());
        }
        // In one piece: the host must not answer the first before the last one is there.
        let mut bytes = Vec::new();
        while write.granted < total && write.grants.len() < most {
            let now = config.r2t_len.min(total - write.granted);
            let ttag = self.next_ttag;
            self.next_ttag = self.next_ttag.wrapping_add(1);
            let len = self.framing.r2t(cid, ttag, write.granted, now, &mut out);
            write.grants.push_back(WriteGrant::new(cid, ttag, write.granted, now));
            write.granted += now;
            bytes.extend_from_slice(&out[..len]);
        }
        self.stream.write_all(&bytes)
    }

    fn granted_data(&mut self, cid: u16, bytes: &[u8]) -> End {
        let Some(write) = self.writing.get_mut(&cid) else {
            return Ok(());
        };
        let grant = write.grants.front().copied().expect("data in the order of the R2Ts");
        let at = (grant.offset + grant.announced) as usize - bytes.len();
        write.data[at..at + bytes.len()].copy_from_slice(bytes);
        if grant.announced == grant.len {
            write.grants.pop_front();
        }
        if write.granted < write.data.len() as u32 {
            return self.grant(cid);
        }
        if write.grants.is_empty() && self.peer.config.fault != Fault::WriteEndsEarly {
            self.peer.seen.granted_writes.fetch_add(1, Ordering::SeqCst);
            let write = self.writing.remove(&cid).unwrap();
            return self.execute(write.sqe, &write.data);
        }
        Ok(())
    }

    fn execute(&mut self, sqe: Sqe, data: &[u8]) -> End {
        if sqe.is_fabrics() {
            self.fabrics(sqe, data);
            return Ok(());
        }
        if self.qid == 0 { self.admin(sqe) } else { self.io(sqe, data) }
    }

    fn fabrics(&mut self, sqe: Sqe, data: &[u8]) {
        let cid = sqe.cid.get();
        let answer = match sqe.fabrics_type() {
            FabricsType::CONNECT => {
                let (command, data) = (ConnectCmd::of(&sqe), ConnectData::ref_from_bytes(data).unwrap());
                assert_ne!(data.hostid, [0; 16]);
                assert!(nul_text(&data.hostnqn).unwrap().starts_with("nqn.2014-08.org.nvmexpress:uuid:"));
                self.qid = command.qid.get();
                self.size = command.sqsize_z.get() + 1;
                self.no_flow = command.cattr & CATTR_DISABLE_SQ_FLOW_CONTROL != 0 && self.peer.config.no_flow;
                assert_eq!(data.cntlid.get(), if self.qid == 0 { CNTLID_DYNAMIC } else { CNTLID });
                let subnqn = nul_text(&data.subnqn).unwrap();
                if subnqn != SUBNQN && subnqn != DISCOVERY_NQN {
                    let mut cqe = Cqe::new(cid, StatusCode::CONNECT_INVALID_PARAMETERS.dnr());
                    cqe.result.set(u64::from(InvalidParameter::Data(256).to_dword()));
                    cqe
                } else {
                    if self.qid != 0 {
                        self.decoder.set_in_capsule_limit(self.peer.config.in_capsule);
                    }
                    Cqe::with_result(cid, u64::from(CNTLID))
                }
            }
            FabricsType::PROPERTY_GET => {
                let value = match Property(PropertyGetCmd::of(&sqe).ofst.get()) {
                    Property::CAP => Cap::fabrics(127, 2, Cap::CQR | Cap::CSS_NVM).0,
                    Property::CSTS => u64::from(self.ready) | if self.shutdown { 8 } else { 0 },
                    Property::VS => u64::from(VERSION_2_0),
                    other => panic!("{other:?}"),
                };
                Cqe::with_result(cid, value)
            }
            FabricsType::PROPERTY_SET => {
                let command = PropertySetCmd::of(&sqe);
                assert_eq!(command.ofst.get(), Property::CC.0);
                let cc = Cc(command.value.get() as u32);
                assert_eq!((cc.iosqes(), cc.iocqes(), cc.css()), (6, 4, 0));
                self.ready = cc.enabled();
                if cc.shn() == 1 {
                    self.shutdown = true;
                    self.peer.seen.shutdowns.fetch_add(1, Ordering::SeqCst);
                }
                Cqe::new(cid, Status::SUCCESS)
            }
            other => panic!("{other:?}"),
        };
        self.respond(answer);
    }

    fn admin(&mut self, sqe: Sqe) -> End {
        let cid = sqe.cid.get();
        match sqe.admin_opcode() {
            AdminOpcode::IDENTIFY => match self.identify(&sqe) {
                Some(data) => self.send_data(cid, &data),
                None => self.respond(Cqe::new(cid, StatusCode::INVALID_FIELD.dnr())),
            },
            AdminOpcode::SET_FEATURES => {
                let queues = FeatureFields::of(&sqe).fid == FeatureId::NUMBER_OF_QUEUES;
                self.respond(Cqe::with_result(cid, if queues { 0x0003_0003 } else { 0 }));
            }
            AdminOpcode::KEEP_ALIVE => {
                self.peer.seen.keep_alives.fetch_add(1, Ordering::SeqCst);
                self.respond(Cqe::new(cid, Status::SUCCESS));
            }
            AdminOpcode::ASYNC_EVENT_REQUEST => {
                *self.peer.event.lock().unwrap() = Some((self.stream.try_clone()?, cid, self.head.clone()));
            }
            AdminOpcode::GET_LOG_PAGE => {
                let fields = GetLogFields::of(&sqe);
                assert_eq!(fields.lid, LogId::DISCOVERY);
                let log = self.discovery_log();
                let at = fields.offset as usize;
                let mut page = vec![0; fields.len() as usize];
                let there = log.len().saturating_sub(at).min(page.len());
                page[..there].copy_from_slice(&log[at..at + there]);
                self.send_data(cid, &page);
            }
            _ => self.respond(Cqe::new(cid, StatusCode::INVALID_OPCODE.dnr())),
        }
        Ok(())
    }

    fn identify(&self, sqe: &Sqe) -> Option<Vec<u8>> {
        let config = &self.peer.config;
        Some(match IdentifyFields::of(sqe).cns {
            Cns::CONTROLLER => {
                let mut c = IdentifyController::new_zeroed();
                c.cntlid.set(CNTLID);
                c.mdts = config.mdts;
                c.cntrltype = ControllerType::IO;
                c.oaes.set(async_event_config::NAMESPACE_ATTRIBUTE);
                c.oncs.set(0xd | if config.vsl.is_some() { 0x80 } else { 0 });
                c.fuses.set(1);
                c.acwu_z.set(7);
                c.ioccsz_16b.set((64 + config.in_capsule) / 16);
                c.iorcsz_16b.set(1);
                c.rtd3e_us.set(2_000_000);
                c.as_bytes().to_vec()
            }
            Cns::NAMESPACE => {
                let mut n = IdentifyNamespace::new_zeroed();
                n.nsze.set((self.peer.disk.lock().unwrap().len() >> config.block_shift) as u64);
                n.lbaf[0].lbads = config.block_shift;
                n.as_bytes().to_vec()
            }
            Cns::ACTIVE_NAMESPACES => {
                // Two pages: 1024 namespaces and three more.
                let first = sqe.nsid.get() + 1;
                (first..first + 1024).flat_map(|n| if n <= 1027 { n } else { 0 }.to_le_bytes()).collect()
            }
            Cns::CONTROLLER_CSI => {
                let mut limits = IdentifyControllerNvm::new_zeroed();
                limits.vsl = config.vsl?;
                limits.as_bytes().to_vec()
            }
            other => panic!("{other:?}"),
        })
    }

    fn discovery_log(&self) -> Vec<u8> {
        let generation = self.peer.generation.load(Ordering::SeqCst);
        let mut header = DiscoveryLogHeader::new_zeroed();
        header.genctr.set(u64::from(generation));
        header.numrec.set(2);
        let mut log = header.as_bytes().to_vec();
        for (nqn, subtype) in [(SUBNQN, SubsystemType::NVM), (DISCOVERY_NQN, SubsystemType::CURRENT_DISCOVERY)] {
            let mut entry = DiscoveryLogEntry::new_zeroed();
            entry.trtype = TransportType::TCP;
            entry.adrfam = AddressFamily::IPV4;
            entry.subtype = subtype;
            entry.cntlid.set(CNTLID_DYNAMIC);
            entry.asqsz.set(32);
            put_text(&mut entry.subnqn, nqn, 0);
            put_text(&mut entry.traddr, "127.0.0.1", b' ');
            put_text(&mut entry.trsvcid, &self.peer.address.port().to_string(), b' ');
            log.extend_from_slice(entry.as_bytes());
        }
        // The first log read is of a generation that changes meanwhile.
        if generation == 1 {
            self.peer.generation.store(2, Ordering::SeqCst);
        }
        log
    }

    fn io(&mut self, sqe: Sqe, data: &[u8]) -> End {
        self.begun = true;
        let peer = self.peer.clone();
        let shift = peer.config.block_shift;
        let cid = sqe.cid.get();
        let cdw12 = RwCdw12(sqe.cdw12.get());
        let at = (sqe.slba() << shift) as usize;
        let len = (usize::from(cdw12.nlb_z()) + 1) << shift;
        let mut disk = peer.disk.lock().unwrap();
        if sqe.nsid.get() != 1 {
            self.respond(Cqe::new(cid, StatusCode::INVALID_NAMESPACE.dnr()));
            return Ok(());
        }
        if cdw12.0 & RwCdw12::FUA != 0 {
            peer.seen.fua.fetch_add(1, Ordering::SeqCst);
        }
        let ok = Cqe::new(cid, Status::SUCCESS);
        match sqe.nvm_opcode() {
            NvmOpcode::READ if at + len > disk.len() => {
                self.respond(Cqe::new(cid, StatusCode::LBA_OUT_OF_RANGE.dnr()));
            }
            NvmOpcode::READ => {
                let data = disk[at..at + len].to_vec();
                drop(disk);
                return self.read(cid, &data);
            }
            NvmOpcode::WRITE => {
                assert_eq!(data.len(), len);
                match (sqe.fuse(), self.compared.take()) {
                    (Fuse::SECOND, Some((first, equal))) => {
                        peer.seen.fused.fetch_add(1, Ordering::SeqCst);
                        if equal {
                            disk[at..at + len].copy_from_slice(data);
                            self.respond(Cqe::new(first, Status::SUCCESS));
                            self.respond(ok);
                        } else {
                            self.respond(Cqe::new(first, StatusCode::COMPARE_FAILURE.dnr()));
                            self.respond(Cqe::new(cid, StatusCode::ABORTED_FAILED_FUSED.dnr()));
                        }
                    }
                    _ => {
                        disk[at..at + len].copy_from_slice(data);
                        self.respond(ok);
                    }
                }
            }
            NvmOpcode::COMPARE => {
                let equal = disk[at..at + len] == *data && !peer.fault(Fault::Compare);
                if sqe.fuse() == Fuse::FIRST {
                    self.compared = Some((cid, equal));
                } else {
                    let status = if equal { Status::SUCCESS } else { StatusCode::COMPARE_FAILURE.dnr() };
                    self.respond(Cqe::new(cid, status));
                }
            }
            NvmOpcode::FLUSH => {
                peer.seen.flushes.fetch_add(1, Ordering::SeqCst);
                self.respond(ok);
            }
            NvmOpcode::VERIFY if peer.config.vsl.is_some() => {
                assert!(data.is_empty() && cdw12.0 >> 16 == 0, "{sqe:?}");
                peer.seen.verifies.fetch_add(1, Ordering::SeqCst);
                // As if the first block could not be read.
                let answer = if at == 0 { Cqe::new(cid, StatusCode::UNRECOVERED_READ_ERROR.dnr()) } else { ok };
                self.respond(answer);
            }
            NvmOpcode::WRITE_ZEROES => {
                disk[at..at + len].fill(0);
                self.respond(ok);
            }
            NvmOpcode::DATASET_MANAGEMENT => {
                peer.seen.unmaps.fetch_add(1, Ordering::SeqCst);
                assert_eq!((sqe.cdw10.get(), sqe.cdw11.get()), (0, DsmAttributes::DEALLOCATE));
                let range = DsmRange::read_from_bytes(data).unwrap();
                let at = (range.slba.get() << shift) as usize;
                disk[at..at + ((range.blocks.get() as usize) << shift)].fill(0);
                self.respond(ok);
            }
            _ => self.respond(Cqe::new(cid, StatusCode::INVALID_OPCODE.dnr())),
        }
        Ok(())
    }

    fn read(&mut self, cid: u16, data: &[u8]) -> End {
        let ok = Cqe::new(cid, Status::SUCCESS);
        let peer = self.peer.clone();
        if peer.fault(Fault::Silence) {
        } else if peer.fault(Fault::UnknownCid) {
            // The same slot, another generation.
            self.respond(Cqe::new(cid ^ 0x8000, Status::SUCCESS));
        } else if peer.fault(Fault::AnsweredTwice) {
            self.send_data(cid, data);
            self.respond(ok);
        } else if peer.fault(Fault::ShortData) {
            let half = self.data_pdus(cid, &data[..data.len() / 2], false);
            self.respond_with(half, ok);
        } else if peer.fault(Fault::DataBeyond) {
            let more: Vec<u8> = data.iter().copied().chain([0; 4]).collect();
            self.send_data(cid, &more);
        } else if peer.fault(Fault::DamagedData) {
            let mut bytes = self.data_pdus(cid, data, false);
            let at = bytes.len() - DIGEST_LEN - 1;
            bytes[at] ^= 1;
            self.respond_with(bytes, ok);
        } else if peer.fault(Fault::ClosesInData) {
            self.flush()?;
            let bytes = self.data_pdus(cid, data, false);
            self.stream.write_all(&bytes[..bytes.len() / 2])?;
            return Err(std::io::ErrorKind::ConnectionReset.into());
        } else if peer.fault(Fault::Terminates) {
            let mut out = [0; MAX_PREFIX_LEN];
            let status = FatalErrorStatus::LIMIT_EXCEEDED;
            let len = term_req(Role::Controller, status, 0, &[4; 72], &mut out);
            self.stream.write_all(&out[..len])?;
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        } else {
            self.send_data(cid, data);
        }
        Ok(())
    }
}
