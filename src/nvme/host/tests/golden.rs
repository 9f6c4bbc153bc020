//! The bytes of a connection, written by hand: what the host sends, and that it understands what comes back.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use zerocopy::FromZeros;

use super::*;
use crate::nvme::io::Identified;
use crate::nvme::spec::{Cap, IdentifyController, IdentifyNamespace, ONCS_COMPARE, ONCS_DSM, ONCS_WRITE_ZEROES};

/// A capsule without digests: type, flags, HLEN, PDO, PLEN, then the command with only these dwords set.
fn capsule(plen: u32, pdo: u8, dwords: &[(usize, u32)]) -> Vec<u8> {
    let mut bytes = vec![4, 0, 72, pdo];
    bytes.extend_from_slice(&plen.to_le_bytes());
    bytes.resize(72, 0);
    for (dword, value) in dwords {
        bytes[8 + dword * 4..][..4].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// A response: result, SQHD, CID, status.
fn response(result: u64, sqhd: u16, cid: u16) -> Vec<u8> {
    let mut bytes = vec![5, 0, 24, 0, 24, 0, 0, 0];
    bytes.extend_from_slice(&result.to_le_bytes());
    bytes.extend_from_slice(&sqhd.to_le_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&cid.to_le_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes
}

fn expect(stream: &mut TcpStream, bytes: &[u8], what: &str) {
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, bytes, "{what}");
}

/// The peer's side of an I/O queue: a read of two blocks, a write of one.
fn talk(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut ic = vec![0; 128];
    // HLEN 128, PLEN 128, version 0, HPDA 0, no digests, four R2Ts.
    ic[..8].copy_from_slice(&[0, 0, 128, 0, 128, 0, 0, 0]);
    ic[12] = 3;
    expect(&mut stream, &ic, "ICReq");
    let mut answer = [0; 128];
    answer[..8].copy_from_slice(&[1, 0, 128, 0, 128, 0, 0, 0]);
    // MAXH2CDATA 4096.
    answer[12..16].copy_from_slice(&[0, 16, 0, 0]);
    // In two pieces: the host must wait for the rest.
    stream.write_all(&answer[..9]).unwrap();
    std::thread::yield_now();
    stream.write_all(&answer[9..]).unwrap();

    // Connect: opcode 7Fh with SGLs, identifier 1024 (slot 0, generation 1), 1,024 bytes in the capsule, queue 3, size 4
    // zero's-based 3, flow control off.
    let cid = 0x0400;
    let connect = capsule(
        72 + 1024,
        72,
        &[(0, 0x0400_407f), (1, 1), (8, 1024), (9, 0x0100_0000), (10, 3 << 16), (11, 3 | 4 << 16)],
    );
    expect(&mut stream, &connect, "Connect");
    let mut data = vec![0; 1024];
    data[..16].fill(0x11);
    data[16] = 9;
    data[256..256 + SUBNQN.len()].copy_from_slice(SUBNQN.as_bytes());
    let host = "nqn.2014-08.org.nvmexpress:uuid:11111111-1111-1111-1111-111111111111";
    data[512..512 + host.len()].copy_from_slice(host.as_bytes());
    expect(&mut stream, &data, "Connect data");
    stream.write_all(&response(9, 0xffff, cid)).unwrap();

    // Read of blocks 16 and 17 of namespace 5: identifier of generation 2.
    let read = capsule(72, 0, &[(0, 0x0800_4002), (1, 5), (8, 1024), (9, 0x5a00_0000), (10, 16), (12, 1)]);
    expect(&mut stream, &read, "Read");
    // C2HData with LAST and SUCCESS, 1,024 bytes.
    let mut data = vec![7, 0x0c, 24, 24, 24, 4, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0];
    data.extend((0..1024).map(|i| i as u8));
    stream.write_all(&data).unwrap();

    // Write of block 1 with FUA; two R2Ts of 256 bytes each, the second before the first's data.
    let write = capsule(72, 0, &[(0, 0x0c00_4001), (1, 5), (8, 512), (9, 0x5a00_0000), (10, 1), (12, 0x4000_0000)]);
    expect(&mut stream, &write, "Write");
    for (ttag, offset) in [(0x55, 0), (0x66, 1)] {
        let r2t = [9, 0, 24, 0, 24, 0, 0, 0, 0, 12, ttag, 0, 0, offset, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        stream.write_all(&r2t).unwrap();
    }
    for (ttag, offset) in [(0x55, 0), (0x66, 1)] {
        // H2CData with LAST, 256 bytes.
        let mut data = vec![6, 4, 24, 24, 24, 1, 0, 0, 0, 12, ttag, 0, 0, offset, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        data.extend((0..256).map(|i| (i + usize::from(offset) * 7) as u8));
        expect(&mut stream, &data, "H2CData");
    }
    stream.write_all(&response(0, 0xffff, 0x0c00)).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the host closes");
}

#[test]
fn an_io_queue_byte_by_byte() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let peer = std::thread::spawn(move || talk(&listener));
    on_reactor(|reactor| async move {
        let mut options = options();
        options.disable_sqflow = true;
        let ticket = Ticket { address, options, cntlid: 9, queues: 3, queue_size: 4, in_capsule_max: 0 };
        let queue = Rc::new(Queue::connect(&reactor, &ticket, 3).await.unwrap());
        let (mut controller, mut namespace) = (IdentifyController::new_zeroed(), IdentifyNamespace::new_zeroed());
        controller.oncs.set(ONCS_COMPARE | ONCS_DSM | ONCS_WRITE_ZEROES);
        namespace.nsze.set(1 << 21);
        namespace.lbaf[0].lbads = 9;
        let id = Identified {
            nsid: 5,
            cap: Cap::default(),
            controller: &controller,
            namespace: &namespace,
            limits: None,
            zoned: None,
        };
        let geometry = Geometry::new(&id, 1 << 20, 4).unwrap();
        let volume = Volume::new(queue, geometry);
        let (status, data) = read(&reactor, &volume, 8192, &[1024]).await;
        assert_eq!(status, IoStatus::Success);
        assert!(data.iter().enumerate().all(|(i, b)| *b == i as u8));
        let mut io = reactor.create_io().unwrap();
        io.prepare(IoOp::Write, 512, 512);
        io.fua = true;
        let mut buf = reactor.buffer(512).await;
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = (i % 256 + i / 256 * 7) as u8;
        }
        io.data.push_buf(buf);
        let io = volume.execute(io).await;
        assert_eq!(io.status, IoStatus::Success);
        reactor.retire_io(io);
        volume.queue().close().await;
    });
    peer.join().unwrap();
}
