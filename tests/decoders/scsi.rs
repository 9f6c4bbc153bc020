//! What must hold for any command and parameter list of a SCSI initiator. As in `checks`: each says whether the input was accepted, and none
//! may panic.

use reactor::scsi::reservation::{Reservations, decode_snapshot};
use reactor::scsi::spec::{SENSE_MAX, TransportId, lun_decode, lun_encode};
use reactor::scsi::{
    Action, Admission, Atomic, Cdb, Command, Context, CopyList, CopyUnit, LogicalUnit, Media, ModeState, NexusId,
    Reply, Request, Resources, Sense, Store, TargetPort, TaskFunctions, Unit, UnitAttention, UnitCommand, decode,
    format_parameters, unmap_ranges,
};

/// Bytes of a step of [`commands`] before its list: who, the CDB, the length of the list.
pub const COMMAND_STEP: usize = 1 + 16 + 2;
const BLOCKS: u64 = 1 << 19;

/// A logical unit that can do everything.
pub fn unit() -> Unit {
    Unit {
        blocks: BLOCKS,
        block_size: 512,
        physical_block_exponent: 3,
        read_only: false,
        can_unmap: true,
        can_anchor: false,
        unmap_max: 1 << 16,
        unmap_granularity: 8,
        unmap_alignment: Some(0),
        write_same_max: 1 << 15,
        compare_and_write_max: 128,
        transfer_max: 8192,
        optimal_transfer: 128,
        optimal_granularity: 8,
        atomic: Some(Atomic { max: 512, alignment: 1, granularity: 1 }),
        volatile_cache: true,
        copies: true,
        uuid: [0x11; 16],
        vendor: "REACTOR".to_owned(),
        product: "VOLUME".to_owned(),
        revision: "0001".to_owned(),
        transport_version: 0x0960,
        task_functions: TaskFunctions { abort_task: true, ..TaskFunctions::default() },
    }
}

/// A logical unit with three nexuses.
pub fn logical_unit() -> LogicalUnit {
    let port = |relative_id: u16| TargetPort {
        relative_id,
        group: 1,
        port_name: format!("iqn.2026-11.io.reactor:vol0,t,0x{relative_id:04x}"),
        device_name: "iqn.2026-11.io.reactor:vol0".to_owned(),
        protocol: 5,
    };
    let mut lu = LogicalUnit::new(unit(), vec![port(1), port(2)], Reservations::default()).unwrap();
    for id in 0..3 {
        let initiator =
            TransportId { name: format!("iqn.2026-11.io.host:{id}"), isid: Some([0x80, 0, 0, 0, 0, id as u8]) };
        lu.attach(NexusId(id), initiator, 1 + id as u16 % 2);
    }
    lu
}

/// A step of [`commands`].
pub fn step(who: u8, cdb: &[u8], list: &[u8]) -> Vec<u8> {
    let mut bytes = vec![who];
    bytes.extend_from_slice(cdb);
    bytes.resize(1 + 16, 0);
    bytes.extend_from_slice(&(list.len() as u16).to_le_bytes());
    bytes.extend_from_slice(list);
    bytes
}

/// Commands of three nexuses to a logical unit, one after the other. The input is accepted if one of them is not refused.
pub fn commands(fresh: &LogicalUnit, input: &[u8]) -> bool {
    let (mut lu, mut rest, mut accepted) = (fresh.clone(), input, false);
    while let Some((head, tail)) = rest.split_first_chunk::<COMMAND_STEP>() {
        let len = usize::from(u16::from_le_bytes([head[17], head[18]])).min(tail.len());
        let (list, next) = tail.split_at(len);
        rest = next;
        accepted |= command(&mut lu, NexusId(u64::from(head[0] % 3)), &head[1..17], list);
        if head[0] & 0xf0 == 0xf0 {
            lu.reset(UnitAttention::DeviceReset);
        }
    }
    accepted
}

fn command(lu: &mut LogicalUnit, id: NexusId, bytes: &[u8], list: &[u8]) -> bool {
    let cdb = Cdb::new(bytes);
    let decoded = decode(&cdb, lu.unit(), lu.mode());
    if let Ok(request) = &decoded {
        check_request(request, lu.unit());
    }
    let (gate, version) = (lu.gate(id).expect("it is attached"), lu.version());
    let admitted = gate.admit(&cdb, lu.unit());
    let action = lu.begin(id, &cdb, &Context { luns: &[0, 1, 256], resources: Resources::default() });
    check_admission(&admitted, &action, decoded.as_ref().ok());
    assert!(lu.version() >= version, "the version goes back");
    match action {
        Action::Reply(reply) => check_reply(&reply),
        Action::Media(..) => true,
        Action::List(command, len) => {
            let mut list = list.to_vec();
            // The door receives as many bytes as the command says.
            list.resize(len as usize, 0);
            if let UnitCommand::PersistOut { .. } | UnitCommand::ModeSelect { .. } = command {
                finish(lu, id, command, &list)
            } else {
                check_reply(&lu.finish(id, command, &list).reply)
            }
        }
    }
}

fn finish(lu: &mut LogicalUnit, id: NexusId, command: UnitCommand, list: &[u8]) -> bool {
    let reaction = lu.finish(id, command, list);
    let done = matches!(reaction.reply, Reply::Good(_));
    assert!(done || reaction.abort.is_empty(), "what is refused aborts nothing");
    if let Some(Store::Keep(bytes)) = &reaction.store {
        let again = decode_snapshot(bytes).expect("what is stored can be read");
        assert_eq!(again.registrants(), lu.reservations().registrants(), "reservations that outlive a restart");
        assert_eq!(again.holder_key(), lu.reservations().holder_key());
    }
    check_reply(&reaction.reply)
}

/// What was decided without the engine is what the engine decides.
fn check_admission(admitted: &Admission, action: &Action, decoded: Option<&Request>) {
    match (admitted, action) {
        (Admission::Engine, _) => {}
        (Admission::Media(a, _), Action::Media(b, _)) => assert_eq!(a, b),
        (Admission::Good(_), Action::Reply(Reply::Good(data))) => assert!(data.is_empty()),
        // Data that must come first is not looked at here.
        (Admission::Good(_), Action::List(..)) => {}
        (Admission::Check(a), Action::Reply(Reply::Check(b))) => assert_eq!(a, b),
        (Admission::Conflict, Action::Reply(Reply::Conflict)) => {}
        other => panic!("{other:?} of {decoded:?}"),
    }
}

/// What decoding has let pass lies within the unit and its limits.
fn check_request(request: &Request, unit: &Unit) {
    let Command::Media(media) = request.command else { return };
    let range = match media {
        Media::Read { lba, blocks, .. }
        | Media::Write { lba, blocks, .. }
        | Media::WriteAtomic { lba, blocks, .. }
        | Media::OrWrite { lba, blocks, .. }
        | Media::WriteAndVerify { lba, blocks, .. }
        | Media::Verify { lba, blocks, .. }
        | Media::CompareAndWrite { lba, blocks, .. } => Some((lba, u64::from(blocks))),
        Media::WriteSame { lba, blocks, .. }
        | Media::SynchronizeCache { lba, blocks, .. }
        | Media::PreFetch { lba, blocks, .. } => Some((lba, blocks)),
        Media::GetLbaStatus { lba, .. } => Some((lba, 0)),
        _ => None,
    };
    if let Some((lba, blocks)) = range {
        assert!(lba.checked_add(blocks).is_some_and(|end| end <= unit.blocks), "{media:?}");
    }
    let moved = unit.bytes(u64::from(unit.transfer_max));
    assert!(request.data_in <= moved.max(1 << 16) || matches!(media, Media::GetLbaStatus { .. }), "{request:?}");
    match media {
        Media::CompareAndWrite { blocks, .. } => assert!(blocks <= unit.compare_and_write_max.into()),
        Media::WriteSame { blocks, .. } => assert!(blocks <= unit.write_same_max),
        _ => {}
    }
}

fn check_reply(reply: &Reply) -> bool {
    match reply {
        Reply::Good(data) => {
            assert!(data.len() <= 1 << 20);
            true
        }
        Reply::Check(sense) => {
            check_sense(sense);
            false
        }
        Reply::Conflict => false,
    }
}

/// Sense data has its length in either format.
fn check_sense(sense: &Sense) {
    let mut out = [0; SENSE_MAX];
    for descriptor in [false, true] {
        let len = sense.encode(descriptor, &mut out);
        assert!((8..=SENSE_MAX).contains(&len) && usize::from(out[7]) + 8 == len, "{sense:?}: {out:x?}");
        assert_eq!(out[0] & 0x7f, if descriptor { 0x72 } else { 0x70 });
    }
}

/// Parameter lists: the first byte says of what.
pub fn lists(unit: &Unit, input: &[u8]) -> bool {
    let Some((&[kind], list)) = input.split_first_chunk::<1>() else { return false };
    match kind % 5 {
        0 => match unmap_ranges(list, unit) {
            Ok(ranges) => {
                let mut count = 0;
                for (lba, blocks) in ranges {
                    assert!(blocks > 0 && lba.checked_add(blocks.into()).is_some_and(|end| end <= unit.blocks));
                    count += 1;
                }
                assert!(count * 16 <= list.len());
                true
            }
            Err(sense) => refused(&sense),
        },
        1 => match format_parameters(list) {
            Ok(_) => true,
            Err(sense) => refused(&sense),
        },
        2 => {
            let seen = |number: u8, block_size: u32| {
                let (readable, writable, protected) = (true, true, false);
                CopyUnit { unit: number, blocks: unit.blocks, block_size, readable, writable, protected }
            };
            let planned = CopyList::decode(list)
                .and_then(|list| list.plan(|designator| designator.names(unit).then(|| seen(1, unit.block_size))));
            match planned {
                Ok(segments) => {
                    for segment in &segments {
                        let blocks = u64::from(segment.bytes) / u64::from(unit.block_size);
                        assert!(segment.bytes > 0 && segment.bytes % unit.block_size == 0, "{segment:?}");
                        for lba in [segment.source_lba, segment.destination_lba] {
                            assert!(lba.checked_add(blocks).is_some_and(|end| end <= unit.blocks), "{segment:?}");
                        }
                    }
                    true
                }
                Err(sense) => refused(&sense),
            }
        }
        3 => match TransportId::decode(list) {
            Some((id, len)) => {
                assert!(len <= list.len());
                let again = TransportId::decode(&id.encode());
                assert_eq!(again.map(|(id, _)| id), Some(id));
                true
            }
            None => false,
        },
        _ => match (list.first_chunk().and_then(|lun| lun_decode(*lun)), decode_snapshot(list)) {
            (Some(lun), _) => {
                assert_eq!(lun_decode(lun_encode(lun)), Some(lun));
                true
            }
            (None, Ok(reservations)) => {
                assert!(decode_snapshot(&reservations.snapshot()).is_ok());
                true
            }
            (None, Err(_)) => false,
        },
    }
}

fn refused(sense: &Sense) -> bool {
    check_sense(sense);
    false
}

/// One CDB in each of several states of the mode parameters.
pub fn cdb(unit: &Unit, input: &[u8]) -> bool {
    match decode(&Cdb::new(&input[..input.len().min(16)]), unit, &ModeState::new(unit)) {
        Ok(request) => {
            check_request(&request, unit);
            true
        }
        Err(sense) => refused(&sense),
    }
}
