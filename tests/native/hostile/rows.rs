//! The table: what a hostile host sends, and what the specification asks for in return.
//!
//! *TCP* is the NVMe/TCP Transport Specification 1.0, *Base* the NVM Express Base Specification 2.0.

use reactor::nvme::spec::StatusCode;
use reactor::nvme::tcp::FatalErrorStatus;

use super::raw::Digests;

/// How far the connection is when the row begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Connected by TCP.
    Fresh,
    /// ICReq and ICResp were exchanged.
    Open,
    /// An admin queue.
    Admin,
    /// An I/O queue.
    Io,
    /// An I/O queue with a write of [`GRANT`] bytes whose R2T has arrived.
    Granted,
}

/// Bytes of the write of [`Stage::Granted`].
pub const GRANT: u32 = 16_384;

/// The PDU that is changed by patches; as it stands it is right.
#[derive(Clone, Copy, Debug)]
pub enum Base {
    /// ICReq.
    IcReq,
    /// Connect of an admin queue.
    Connect,
    /// Property Get.
    PropertyGet,
    /// A flush: a capsule without data.
    Flush,
    /// A write of 512 bytes in the capsule.
    Write,
    /// A read of 4,096 bytes.
    Read,
    /// Data for the R2T of [`Stage::Granted`], or for none: offset, length, LAST_PDU.
    H2c(u32, u32, bool),
    /// A termination request of 24 bytes and 8 of a header.
    Term,
}

/// What has to come back.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// C2HTermReq with status, information and that many bytes of the header, then the end (TCP §3.5).
    Fatal(FatalErrorStatus, u32, usize),
    /// C2HTermReq for a header digest: the information is the digest that was received.
    HeaderDigest,
    /// The command's status; the connection goes on.
    Status(StatusCode),
    /// As it would be for the PDU without the patches; the connection goes on.
    Accepted,
    /// The end, without an answer.
    Hangup,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What is wrong.
    pub name: &'static str,
    /// Where the specification says what is to happen.
    pub section: &'static str,
    /// Where it begins.
    pub stage: Stage,
    /// Digests in use.
    pub digests: Digests,
    /// What is sent.
    pub base: Base,
    /// Changes to it: offset and bytes. Header digests are made right afterwards, except for [`Answer::HeaderDigest`].
    pub patches: &'static [(usize, &'static [u8])],
    /// What comes back.
    pub answer: Answer,
}

const NONE: Digests = (false, false);
const HEADER: Digests = (true, false);
const DATA: Digests = (false, true);
const BOTH: Digests = (true, true);

/// The field at that offset is invalid; only the common header can be told apart then.
const fn common(offset: u32) -> Answer {
    Answer::Fatal(FatalErrorStatus::INVALID_HEADER_FIELD, offset, 8)
}

/// The field at that offset of a data PDU is invalid.
const fn data(offset: u32) -> Answer {
    Answer::Fatal(FatalErrorStatus::INVALID_HEADER_FIELD, offset, 24)
}

/// A PDU that must not come now.
const fn sequence(header: usize) -> Answer {
    Answer::Fatal(FatalErrorStatus::SEQUENCE_ERROR, 0, header)
}

/// Data outside what was asked for.
const RANGE: Answer = Answer::Fatal(FatalErrorStatus::DATA_OUT_OF_RANGE, 0, 24);

const fn row(
    name: &'static str,
    section: &'static str,
    (stage, digests): (Stage, Digests),
    base: Base,
    patches: &'static [(usize, &'static [u8])],
    answer: Answer,
) -> Row {
    Row { name, section, stage, digests, base, patches, answer }
}

const FRESH: (Stage, Digests) = (Stage::Fresh, NONE);
const OPEN: (Stage, Digests) = (Stage::Open, NONE);
const ADMIN: (Stage, Digests) = (Stage::Admin, NONE);
const IO: (Stage, Digests) = (Stage::Io, NONE);
const GRANTED: (Stage, Digests) = (Stage::Granted, NONE);
const WHOLE: Base = Base::H2c(0, GRANT, true);

const UNSUPPORTED: FatalErrorStatus = FatalErrorStatus::UNSUPPORTED_PARAMETER;
const LIMIT: Answer = Answer::Fatal(FatalErrorStatus::LIMIT_EXCEEDED, 0, 24);

/// The rows.
pub const ROWS: &[Row] = &[
    // The first PDU.
    row("a command first", "TCP §3.1", FRESH, Base::Flush, &[], sequence(8)),
    row("data first", "TCP §3.1", FRESH, Base::H2c(0, 512, true), &[], sequence(8)),
    row("a termination first", "TCP §3.5", FRESH, Base::Term, &[], Answer::Hangup),
    row("ICResp first", "TCP §3.2", FRESH, Base::IcReq, &[(0, &[1])], common(0)),
    row("unknown type first", "TCP §3.2", FRESH, Base::IcReq, &[(0, &[0x0b])], common(0)),
    row("zeros", "TCP §3.6.2.1", FRESH, Base::IcReq, &[(0, &[0; 8])], common(2)),
    row("ones", "TCP §3.6.2.1", FRESH, Base::IcReq, &[(0, &[0xff; 8])], common(0)),
    row("ICReq with a flag", "TCP §3.6.2.2", FRESH, Base::IcReq, &[(1, &[1])], common(1)),
    row("ICReq, HLEN short", "TCP §3.6.2.2", FRESH, Base::IcReq, &[(2, &[127])], common(2)),
    row("ICReq, HLEN long", "TCP §3.6.2.2", FRESH, Base::IcReq, &[(2, &[129])], common(2)),
    row("ICReq, PLEN short", "TCP §3.6.2.2", FRESH, Base::IcReq, &[(4, &[127, 0])], common(4)),
    row("ICReq, PLEN long", "TCP §3.6.2.2", FRESH, Base::IcReq, &[(4, &[129, 0])], common(4)),
    row("ICReq, PLEN huge", "TCP §3.6.2.2", FRESH, Base::IcReq, &[(4, &[0xff; 4])], common(4)),
    row("ICReq, PFV 1", "TCP §3.6.2.2", FRESH, Base::IcReq, &[(8, &[1, 0])], Answer::Fatal(UNSUPPORTED, 8, 128)),
    row("ICReq, PFV 100h", "TCP §3.6.2.2", FRESH, Base::IcReq, &[(8, &[0, 1])], Answer::Fatal(UNSUPPORTED, 8, 128)),
    row(
        "ICReq, HPDA 32",
        "TCP §3.6.2.2",
        FRESH,
        Base::IcReq,
        &[(10, &[32])],
        Answer::Fatal(FatalErrorStatus::INVALID_HEADER_FIELD, 10, 128),
    ),
    row("ICReq, reserved PDO", "TCP §3.6.2.2", FRESH, Base::IcReq, &[(3, &[9])], Answer::Accepted),
    row("ICReq, reserved digests", "TCP §3.6.2.2", FRESH, Base::IcReq, &[(11, &[0xfc])], Answer::Accepted),
    row("ICReq, all of MAXR2T", "TCP §3.6.2.2", FRESH, Base::IcReq, &[(12, &[0xff; 4])], Answer::Accepted),
    row("ICReq, reserved bytes", "TCP §3.6.2.2", FRESH, Base::IcReq, &[(16, &[0xff; 112])], Answer::Accepted),
    // Before Connect.
    row("second ICReq", "TCP §3.1", OPEN, Base::IcReq, &[], sequence(8)),
    row("a flush before Connect", "Base §3.3.2.2", OPEN, Base::Flush, &[], Answer::Status(SEQUENCE_ERROR)),
    row("a write before Connect", "Base §3.3.2.2", OPEN, Base::Write, &[], Answer::Status(SEQUENCE_ERROR)),
    row("Property Get before Connect", "Base §3.3.2.2", OPEN, Base::PropertyGet, &[], Answer::Status(SEQUENCE_ERROR)),
    row("data before Connect", "TCP §3.3.2.1", OPEN, Base::H2c(0, 512, true), &[], data(10)),
    row("Connect with PRPs", "Base §6.3", OPEN, Base::Connect, &[(9, &[0])], Answer::Status(INVALID_FIELD)),
    row("Connect, SGL too long", "Base §6.3", OPEN, Base::Connect, &[(40, &[0, 8])], Answer::Status(SGL_LENGTH)),
    row("Connect, SGL too short", "Base §6.3", OPEN, Base::Connect, &[(40, &[0, 2])], Answer::Status(SGL_LENGTH)),
    row("Connect, record format 1", "Base §6.3", OPEN, Base::Connect, &[(48, &[1])], Answer::Status(FORMAT)),
    row("Connect, queue FFFFh", "Base §6.3", OPEN, Base::Connect, &[(50, &[0xff; 2])], Answer::Status(PARAMETERS)),
    row("Connect, queue of 1 entry", "Base §6.3", OPEN, Base::Connect, &[(52, &[0; 2])], Answer::Status(PARAMETERS)),
    row("Connect, queue too long", "Base §6.3", OPEN, Base::Connect, &[(52, &[0xff; 2])], Answer::Status(PARAMETERS)),
    row("Connect, host ID 0", "Base §6.3", OPEN, Base::Connect, &[(72, &[0; 16])], Answer::Status(PARAMETERS)),
    row("Connect, static controller", "Base §6.3", OPEN, Base::Connect, &[(88, &[1, 0])], Answer::Status(PARAMETERS)),
    row(
        "Connect, NQN without end",
        "Base §6.3",
        OPEN,
        Base::Connect,
        &[(328, &[b'x'; 256])],
        Answer::Status(PARAMETERS),
    ),
    row("Connect, no host NQN", "Base §6.3", OPEN, Base::Connect, &[(584, &[0; 256])], Answer::Status(PARAMETERS)),
    // Common headers.
    row("H2C type of the other end: ICResp", "TCP §3.2", ADMIN, Base::PropertyGet, &[(0, &[1])], common(0)),
    row("H2C type of the other end: C2HTermReq", "TCP §3.2", ADMIN, Base::PropertyGet, &[(0, &[3])], common(0)),
    row("H2C type of the other end: response", "TCP §3.2", IO, Base::Flush, &[(0, &[5])], common(0)),
    row("H2C type of the other end: C2HData", "TCP §3.2", IO, Base::Flush, &[(0, &[7])], common(0)),
    row("H2C type of the other end: R2T", "TCP §3.2", IO, Base::Flush, &[(0, &[9])], common(0)),
    row("type 08h", "TCP §3.2", IO, Base::Flush, &[(0, &[8])], common(0)),
    row("type 0Ah", "TCP §3.2", IO, Base::Flush, &[(0, &[10])], common(0)),
    row("type FFh", "TCP §3.2", IO, Base::Flush, &[(0, &[0xff])], common(0)),
    row("reserved flag", "TCP §3.6.2.6", IO, Base::Flush, &[(1, &[0x10])], common(1)),
    row("LAST_PDU on a command", "TCP §3.6.2.6", IO, Base::Flush, &[(1, &[4])], common(1)),
    row("header digest not agreed", "TCP §3.6.2.6", IO, Base::Flush, &[(1, &[1])], common(1)),
    row("data digest not agreed", "TCP §3.6.2.6", IO, Base::Write, &[(1, &[2])], common(1)),
    row("header digest missing", "TCP §3.3.1.1", (Stage::Io, HEADER), Base::Flush, &[(1, &[0])], common(1)),
    row("data digest missing", "TCP §3.3.1.1", (Stage::Io, DATA), Base::Write, &[(1, &[0])], common(1)),
    row("one digest of two", "TCP §3.3.1.1", (Stage::Io, BOTH), Base::Write, &[(1, &[1])], common(1)),
    row("HLEN short", "TCP §3.6.2.6", IO, Base::Flush, &[(2, &[71])], common(2)),
    row("HLEN long", "TCP §3.6.2.6", IO, Base::Flush, &[(2, &[73])], common(2)),
    row("HLEN 0", "TCP §3.6.2.6", ADMIN, Base::PropertyGet, &[(2, &[0])], common(2)),
    row("PDO inside the header", "TCP §3.6.2.6", IO, Base::Write, &[(3, &[68])], common(3)),
    row("PDO not on a dword", "TCP §3.6.2.6", IO, Base::Write, &[(3, &[74])], common(3)),
    row("PDO beyond PLEN", "TCP §3.6.2.6", IO, Base::Write, &[(3, &[252]), (4, &[200, 0, 0, 0])], common(3)),
    row("PLEN 0", "TCP §3.6.2.6", IO, Base::Flush, &[(4, &[0; 4])], common(4)),
    row("PLEN below HLEN", "TCP §3.6.2.6", IO, Base::Flush, &[(4, &[71])], common(4)),
    row("PLEN huge", "TCP §3.6.2.6", IO, Base::Write, &[(4, &[0xff; 4])], common(4)),
    row("capsule longer than an I/O queue's", "TCP §3.3.2.1", IO, Base::Write, &[(4, &[0x49, 0x20])], common(4)),
    row("capsule longer than an admin queue's", "TCP §3.3.2.1", ADMIN, Base::Write, &[(4, &[0x49, 0x20])], common(4)),
    row("PLEN without a digest", "TCP §3.6.2.6", (Stage::Io, HEADER), Base::Flush, &[(4, &[72])], common(4)),
    row("nothing but a data digest", "TCP §3.6.2.6", (Stage::Io, DATA), Base::Write, &[(4, &[76, 0])], common(4)),
    row("second ICReq on an I/O queue", "TCP §3.1", IO, Base::IcReq, &[], sequence(8)),
    row("second ICReq under digests", "TCP §3.1", (Stage::Io, BOTH), Base::IcReq, &[], sequence(8)),
    // Digests.
    row("header damaged", "TCP §3.3.1.1", (Stage::Io, HEADER), Base::Flush, &[(20, &[1])], Answer::HeaderDigest),
    row(
        "header digest damaged",
        "TCP §3.3.1.1",
        (Stage::Io, HEADER),
        Base::Flush,
        &[(72, &[1, 2, 3, 4])],
        Answer::HeaderDigest,
    ),
    row("header of data damaged", "TCP §3.3.1.1", (Stage::Granted, HEADER), WHOLE, &[(20, &[1])], Answer::HeaderDigest),
    row(
        "in-capsule data damaged",
        "TCP §3.5",
        (Stage::Io, DATA),
        Base::Write,
        &[(80, &[0xee; 8])],
        Answer::Status(TRANSPORT),
    ),
    row(
        "data digest damaged",
        "TCP §3.5",
        (Stage::Io, BOTH),
        Base::Write,
        &[(76 + 512, &[1, 2, 3, 4])],
        Answer::Status(TRANSPORT),
    ),
    row(
        "data of an R2T damaged",
        "TCP §3.5",
        (Stage::Granted, DATA),
        WHOLE,
        &[(80, &[0xee; 8])],
        Answer::Status(TRANSPORT),
    ),
    row(
        "Connect damaged",
        "TCP §3.5",
        (Stage::Open, DATA),
        Base::Connect,
        &[(72, &[0xee; 8])],
        Answer::Status(TRANSPORT),
    ),
    // Data that nobody asked for, or not like that.
    row("data without an R2T", "TCP §3.3.2.1", IO, Base::H2c(0, 512, true), &[], data(10)),
    row("data without an R2T, to an admin queue", "TCP §3.3.2.1", ADMIN, Base::H2c(0, 512, true), &[], data(10)),
    row("TTAG of nothing", "TCP §3.3.2.1", GRANTED, WHOLE, &[(10, &[0xff; 2])], data(10)),
    row("TTAG of another slot", "TCP §3.3.2.1", GRANTED, WHOLE, &[(10, &[7, 0])], data(10)),
    row("CCCID of another command", "TCP §3.3.2.1", GRANTED, WHOLE, &[(8, &[0xee, 0xee])], data(8)),
    row("DATAO behind the R2T", "TCP §3.3.2.1", GRANTED, WHOLE, &[(12, &[0, 0x40])], RANGE),
    row("DATAO at the end of numbers", "TCP §3.3.2.1", GRANTED, WHOLE, &[(12, &[0xfc, 0xff, 0xff, 0xff])], RANGE),
    row("DATAO not on a dword", "TCP §3.6.2.8", GRANTED, WHOLE, &[(12, &[2])], data(12)),
    row("a gap", "TCP §3.3.2.1", GRANTED, Base::H2c(4096, 4096, false), &[], sequence(24)),
    row("more than the R2T", "TCP §3.3.2.1", GRANTED, Base::H2c(0, GRANT + 4, true), &[], RANGE),
    row("more than MAXH2CDATA", "TCP §3.3.2.1", GRANTED, WHOLE, &[(4, &[0x1c, 0, 16, 0]), (16, &[4, 0, 16, 0])], LIMIT),
    row("DATAL and PLEN differ", "TCP §3.6.2.8", GRANTED, WHOLE, &[(16, &[0, 0x20])], data(4)),
    row("DATAL not of dwords", "TCP §3.6.2.8", GRANTED, WHOLE, &[(4, &[0x1a, 0x40]), (16, &[2, 0x40])], data(16)),
    row("no data", "TCP §3.6.2.8", GRANTED, WHOLE, &[(4, &[24, 0]), (16, &[0, 0])], common(4)),
    row("no LAST_PDU at the end", "TCP §3.3.2.1", GRANTED, Base::H2c(0, GRANT, false), &[], data(1)),
    row("LAST_PDU before the end", "TCP §3.3.2.1", GRANTED, Base::H2c(0, 4096, true), &[], data(1)),
    row("SUCCESS on data of a host", "TCP §3.6.2.8", GRANTED, WHOLE, &[(1, &[0x0c])], common(1)),
    row("HLEN of data", "TCP §3.6.2.8", GRANTED, WHOLE, &[(2, &[72])], common(2)),
    row("PDO of data inside the header", "TCP §3.6.2.8", GRANTED, WHOLE, &[(3, &[20])], common(3)),
    row("reserved bytes of data", "TCP §3.6.2.8", GRANTED, WHOLE, &[(20, &[0xff; 4])], Answer::Accepted),
    // Termination requests.
    row("termination", "TCP §3.5", IO, Base::Term, &[], Answer::Hangup),
    row("termination of a write", "TCP §3.5", GRANTED, Base::Term, &[], Answer::Hangup),
    row("termination, PLEN short", "TCP §3.5", IO, Base::Term, &[(4, &[23])], Answer::Hangup),
    row("termination, PLEN long", "TCP §3.5", IO, Base::Term, &[(4, &[153])], Answer::Hangup),
    row("termination, PLEN huge", "TCP §3.5", IO, Base::Term, &[(4, &[0xff; 4])], Answer::Hangup),
    row("termination, HLEN wrong", "TCP §3.5", IO, Base::Term, &[(2, &[8])], Answer::Hangup),
    row("termination, unknown reason", "TCP §3.5", IO, Base::Term, &[(8, &[0xff; 6])], Answer::Hangup),
    // Commands that contradict their capsule, or make no sense.
    row("second Connect", "Base §6.3", ADMIN, Base::Connect, &[], Answer::Status(SEQUENCE_ERROR)),
    row("Connect on an I/O queue", "Base §6.3", IO, Base::Connect, &[], Answer::Status(SEQUENCE_ERROR)),
    row("write with PRPs", "Base §3.3.3.1", IO, Base::Write, &[(9, &[0])], Answer::Status(INVALID_FIELD)),
    row("write, in-capsule offset", "Base §4.1.2.1", IO, Base::Write, &[(32, &[4])], Answer::Status(SGL_OFFSET)),
    row(
        "write, SGL longer than its capsule",
        "TCP §3.3.2.1",
        IO,
        Base::Write,
        &[(40, &[0, 4])],
        Answer::Status(SGL_LENGTH),
    ),
    row(
        "write, SGL shorter than its capsule",
        "TCP §3.3.2.1",
        IO,
        Base::Write,
        &[(40, &[0, 1])],
        Answer::Status(SGL_LENGTH),
    ),
    row("write, keyed SGL", "TCP §3.3.2.1", IO, Base::Write, &[(47, &[0x40])], Answer::Status(SGL_TYPE)),
    row("write, bit bucket", "TCP §3.3.2.1", IO, Base::Write, &[(47, &[0x10])], Answer::Status(SGL_TYPE)),
    row("write, segment", "TCP §3.3.2.1", IO, Base::Write, &[(47, &[0x20])], Answer::Status(SGL_TYPE)),
    row("read into the capsule", "TCP §3.3.2.1", IO, Base::Read, &[(47, &[1])], Answer::Status(SGL_TYPE)),
    row("a flush with data", "Base §3.3.3.1", IO, Base::Write, &[(8, &[0])], Answer::Status(SGL_LENGTH)),
    row("reserved opcode", "NVM §3", IO, Base::Flush, &[(8, &[0x7e])], Answer::Status(INVALID_OPCODE)),
    row("namespace 0", "Base §3.2.1.2", IO, Base::Read, &[(12, &[0])], Answer::Status(NAMESPACE)),
    row("inactive namespace", "Base §3.2.1.3", IO, Base::Read, &[(12, &[9])], Answer::Status(INVALID_FIELD)),
    row("namespace beyond NN", "Base §3.2.1.2", IO, Base::Read, &[(12, &[1, 1])], Answer::Status(NAMESPACE)),
    row("read beyond the end", "NVM §3.2.4", IO, Base::Read, &[(48, &[0xff; 8])], Answer::Status(LBA_RANGE)),
    row("read of another length", "NVM §3.2.4", IO, Base::Read, &[(56, &[1])], Answer::Status(SGL_LENGTH)),
    row(
        "read of more than MDTS",
        "Base §5.17.2.1",
        IO,
        Base::Read,
        &[(56, &[0xff, 0x0f])],
        Answer::Status(INVALID_FIELD),
    ),
    row("reserved fuse", "Base §3.3.3.1", IO, Base::Read, &[(9, &[0x43])], Answer::Status(INVALID_FIELD)),
    row("second half alone", "Base §3.4.2", IO, Base::Write, &[(9, &[0x42])], Answer::Status(MISSING_FUSED)),
];

const SEQUENCE_ERROR: StatusCode = StatusCode::COMMAND_SEQUENCE_ERROR;
const INVALID_FIELD: StatusCode = StatusCode::INVALID_FIELD;
const INVALID_OPCODE: StatusCode = StatusCode::INVALID_OPCODE;
const SGL_LENGTH: StatusCode = StatusCode::SGL_DATA_LENGTH_INVALID;
const SGL_OFFSET: StatusCode = StatusCode::SGL_OFFSET_INVALID;
const SGL_TYPE: StatusCode = StatusCode::SGL_DESCRIPTOR_TYPE_INVALID;
const FORMAT: StatusCode = StatusCode::CONNECT_INCOMPATIBLE_FORMAT;
const PARAMETERS: StatusCode = StatusCode::CONNECT_INVALID_PARAMETERS;
const TRANSPORT: StatusCode = StatusCode::TRANSIENT_TRANSPORT_ERROR;
const NAMESPACE: StatusCode = StatusCode::INVALID_NAMESPACE;
const LBA_RANGE: StatusCode = StatusCode::LBA_OUT_OF_RANGE;
const MISSING_FUSED: StatusCode = StatusCode::ABORTED_MISSING_FUSED;
