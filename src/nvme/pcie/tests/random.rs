//! Random I/O on a controller that fails by chance, against a model of every block.

use super::super::fake::When;
use super::*;
use crate::reactor::clock::Entropy;

/// Blocks of a task, of its own.
const BLOCKS: u64 = 64;
const STEPS: u64 = 40;

/// What a block may hold, by the tags of its writers; 0 are zeros.
#[derive(Clone, Debug)]
struct Block {
    /// As it is read.
    now: Vec<u64>,
    /// After the power was cut.
    durable: Vec<u64>,
}

type Model = Rc<RefCell<Vec<Block>>>;
/// Namespace and first block of what a task works on.
type Part = (u32, u64, Model);

fn bytes(tags: impl Iterator<Item = u64>) -> Vec<u8> {
    tags.flat_map(|tag| tag.to_le_bytes().repeat(BLOCK as usize / 8)).collect()
}

/// The tags of blocks; `None` for one that is torn.
fn tags(data: &[u8]) -> Vec<Option<u64>> {
    let whole = |block: &[u8]| {
        let tag = block[..8].to_vec();
        block.chunks(8).all(|word| word == tag).then(|| u64::from_le_bytes(tag.try_into().unwrap()))
    };
    data.chunks(BLOCK as usize).map(whole).collect()
}

fn by_chance(millionths: u32, then: Fault) -> Rule {
    Rule { at: Point::ANY_IO, when: When::Chance(millionths), count: None, then }
}

fn faults() -> [Rule; 9] {
    [
        by_chance(20_000, Fault::Late(3 * MS)),
        by_chance(1_000, Fault::Late(150 * MS)),
        by_chance(1_500, Fault::Lost),
        by_chance(1_500, Fault::Hang),
        by_chance(10_000, Fault::Status(StatusCode::COMMAND_INTERRUPTED.retry())),
        by_chance(5_000, Fault::Status(StatusCode::INTERNAL_ERROR.dnr())),
        by_chance(5_000, Fault::Twice),
        by_chance(5_000, Fault::Extra(0x3ff)),
        by_chance(300, Fault::Fatal),
    ]
}

/// What one task does on its own part of a namespace.
async fn load(handle: Handle, first: u64, model: Model, seed: u64) {
    let chance = Entropy::new(seed);
    let mut told = LossTold::new(handle.reactor().clock().now());
    for step in 1..=STEPS {
        let from = chance.below(BLOCKS);
        let count = 1 + chance.below((BLOCKS - from).min(20));
        let range = from as usize..(from + count) as usize;
        let (offset, len) = ((first + from) * BLOCK, count * BLOCK);
        let tag = seed << 16 | step << 8 | 1;
        let now: Vec<u64> = model.borrow()[range.clone()].iter().map(|block| block.now[0]).collect();
        let sure = model.borrow()[range.clone()].iter().all(|block| block.now.len() == 1);
        let (op, tag, data) = match chance.below(8) {
            0 | 1 => (IoOp::Read, 0, vec![0xDB; len as usize]),
            2 => (IoOp::WriteZeroes, 0, Vec::new()),
            3 => (IoOp::Unmap, 0, Vec::new()),
            4 => {
                if flush_for(&handle, &mut told).await == IoStatus::Success {
                    model.borrow_mut().iter_mut().for_each(|block| block.durable = block.now.clone());
                }
                continue;
            }
            5 if sure => {
                let new = std::iter::repeat_n(tag, count as usize);
                (IoOp::CompareAndWrite, tag, bytes(now.into_iter().chain(new)))
            }
            _ => (IoOp::Write, tag, bytes(std::iter::repeat_n(tag, count as usize))),
        };
        // In two pieces, by chance at odd bytes.
        let cut = chance.below(data.len() as u64 + 1) as usize;
        let io = io_with(handle.reactor(), op, offset, len, &data, &[cut]);
        if op.writes() {
            model.borrow_mut()[range.clone()].iter_mut().for_each(|block| block.durable.push(tag));
        }
        let done = end_of(&handle, io).await;
        let well = done.status == IoStatus::Success;
        let mut blocks = model.borrow_mut();
        match op {
            IoOp::Read if well => {
                for (block, tag) in blocks[range].iter_mut().zip(tags(&done.data)) {
                    let tag = tag.unwrap_or_else(|| panic!("seed {seed}: torn"));
                    assert!(block.now.contains(&tag), "seed {seed}, step {step}: {tag:#x} and not {block:x?}");
                    block.now = vec![tag];
                }
            }
            _ if op.writes() && well => blocks[range].iter_mut().for_each(|block| block.now = vec![tag]),
            _ if op.writes() => blocks[range].iter_mut().for_each(|block| block.now.push(tag)),
            _ => {}
        }
    }
}

/// Begins a task on each reactor and namespace; their models, with the number of tasks that have not ended.
fn begin(rig: &Rig, seed: u64) -> (Vec<Part>, Rc<RefCell<usize>>) {
    let left = Rc::new(RefCell::new(4));
    let mut models = Vec::new();
    for reactor in 0..2 {
        for nsid in 1..=2 {
            let first = u64::from(reactor) * BLOCKS;
            let model = Model::new(RefCell::new(vec![Block { now: vec![0], durable: vec![0] }; BLOCKS as usize]));
            let (handle, there, ended) = (rig.handle(reactor, nsid), model.clone(), left.clone());
            let seed = seed * 4 + u64::from(reactor) * 2 + u64::from(nsid);
            rig.reactor(reactor).spawn("load", async move {
                load(handle, first, there, seed).await;
                *ended.borrow_mut() -= 1;
            });
            models.push((nsid, first, model));
        }
    }
    (models, left)
}

fn opened(seed: u64, write_cache: bool) -> Rig {
    let controller = FakeOptions {
        // With interrupts, and without.
        vectors: if seed.is_multiple_of(2) { 65 } else { 1 },
        io_ns: (5_000, 200_000),
        seed,
        shadow_doorbells: seed.is_multiple_of(2),
        ..FakeOptions::default()
    };
    let disk = |disk: &mut DiskOptions| {
        disk.write_cache = write_cache;
        if seed.is_multiple_of(3) {
            disk.sgls = 0;
        }
    };
    let mut rig = Rig::closed(seed, disk, controller);
    (rig.timeout_ns, rig.options.depth) = (100 * MS, 4);
    rig.open().unwrap();
    rig
}

#[test]
fn what_was_acknowledged_is_on_the_disk() {
    let (mut resets, mut aborts, mut stale) = (0, 0, 0);
    for seed in 1..=100 {
        let mut rig = opened(seed, false);
        rig.inject(faults());
        let (models, left) = begin(&rig, seed);
        let limit = rig.now() + 300 * S;
        while *left.borrow() > 0 {
            assert!(rig.now() < limit, "seed {seed}: {:?}", rig.drive().life());
            rig.wait(10 * MS);
        }
        for (nsid, first, model) in models {
            let held = tags(&rig.disk.contents(nsid, first * BLOCK, (BLOCKS * BLOCK) as usize));
            for (index, (block, tag)) in model.borrow().iter().zip(held).enumerate() {
                let tag = tag.unwrap_or_else(|| panic!("seed {seed}, block {index}: torn"));
                assert!(block.now.contains(&tag), "seed {seed}, {nsid}, block {index}: {tag:#x} and not {block:x?}");
            }
        }
        (resets, aborts) = (resets + rig.drive().counters().resets, aborts + rig.drive().counters().aborts);
        stale += rig.stale_if_live();
        rig.port.fake.forgive();
        rig.finish();
    }
    assert!(
        resets > 10 && aborts > 10 && stale > 10,
        "{resets} resets, {aborts} aborts, {stale} wrong answers: too few"
    );
}

#[test]
fn what_was_flushed_survives_a_power_cut() {
    let mut lost = 0;
    for seed in 1..=60 {
        let mut rig = opened(seed, true);
        rig.inject(faults());
        let (models, _) = begin(&rig, seed);
        let chance = Entropy::new(seed);
        rig.wait(chance.below(60) * MS);
        rig.port.fake.remove();
        let unflushed = rig.disk.unflushed(1);
        rig.disk.power_cut(&chance);
        lost += unflushed;
        for (nsid, first, model) in models {
            let held = tags(&rig.disk.contents(nsid, first * BLOCK, (BLOCKS * BLOCK) as usize));
            for (index, (block, tag)) in model.borrow().iter().zip(held).enumerate() {
                let tag = tag.unwrap_or_else(|| panic!("seed {seed}, block {index}: torn"));
                assert!(
                    block.durable.contains(&tag),
                    "seed {seed}, {nsid}, block {index}: {tag:#x} and not {block:x?}"
                );
            }
        }
        rig.wait(2 * S);
        assert_eq!(rig.drive().life(), Life::Failed);
        rig.finish();
    }
    assert!(lost > 100, "{lost} blocks were not durable: too few");
}
