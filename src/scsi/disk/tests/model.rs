//! Random commands against a vector of bytes.

use super::*;
use crate::scsi::spec::ProvisioningStatus;

/// The first difference, as MISCOMPARE tells it.
fn compared(there: &[u8], data: &[u8]) -> Outcome {
    match there.iter().zip(data).position(|(a, b)| a != b) {
        Some(at) => Outcome::Check(Sense::miscompare(at as u64)),
        None => Outcome::Good,
    }
}

struct Model {
    rig: Rig,
    bytes: Vec<u8>,
    block: usize,
    random: Random,
}

impl Model {
    fn range(&self, lba: u64, blocks: u64) -> std::ops::Range<usize> {
        lba as usize * self.block..(lba + blocks) as usize * self.block
    }

    /// First block and blocks, at most `most`, often at an edge or of a length where commands are cut.
    fn draw(&mut self, most: u64) -> (u64, u64) {
        let total = (self.bytes.len() / self.block) as u64;
        let chunk = (spares::CHUNK / self.block) as u64;
        let sizes = [1, 2, 3, 7, 8, 9, 127, 128, 255, 256, chunk / 2, chunk / 2 + 1, chunk - 1, chunk, chunk + 1, most];
        let blocks = match self.random.below(3) {
            0 => sizes[self.random.below(sizes.len())],
            1 => 1 + self.random.up_to(16),
            _ => 1 + self.random.up_to(most),
        };
        let blocks = blocks.clamp(1, most.min(total));
        let lba = match self.random.below(4) {
            0 => 0,
            1 => total - blocks,
            _ => self.random.up_to(total - blocks + 1),
        };
        (lba, blocks)
    }

    /// Data to compare with what is there: the same, or with one other byte.
    fn nearly(&mut self, mut there: Vec<u8>) -> Vec<u8> {
        if self.random.below(2) == 0 {
            let at = self.random.below(there.len());
            there[at] ^= 1 << self.random.below(8);
        }
        there
    }

    /// Random bytes, of which some blocks are zeros.
    fn bytes(&mut self, blocks: u64) -> Vec<u8> {
        let mut data = self.random.bytes(blocks as usize * self.block);
        for block in data.chunks_mut(self.block) {
            if self.random.below(8) == 0 {
                block.fill(0);
            }
        }
        data
    }

    /// A command, its data, and how it must end and with what data; the model is as after it.
    fn next(&mut self) -> (Media, Vec<u8>, Outcome, Vec<u8>) {
        let unit = self.rig.nexus.disk.unit().clone();
        let most = u64::from(unit.transfer_max);
        let (lba, blocks) = self.draw(most);
        let (range, count) = (self.range(lba, blocks), blocks as u32);
        let there = self.bytes[range.clone()].to_vec();
        let (good, nothing) = (Outcome::Good, Vec::new());
        let (dpo, fua) = (self.random.below(2) == 0, self.random.below(4) == 0);
        match self.random.below(20) {
            0..3 => (Media::Read { lba, blocks: count, dpo, fua }, nothing, good, there),
            3..6 => {
                let data = self.bytes(blocks);
                self.bytes[range].copy_from_slice(&data);
                (Media::Write { lba, blocks: count, dpo, fua }, data, good, nothing)
            }
            6 => {
                // The initiator sends fewer blocks than it says, or none.
                let sent = self.random.up_to(blocks);
                let data = self.bytes(sent);
                let range = self.range(lba, sent);
                self.bytes[range].copy_from_slice(&data);
                let verifies = self.random.below(2) == 0;
                let media = if verifies { write_and_verify(lba, count, dpo) } else { write(lba, count) };
                (media, data, good, nothing)
            }
            7 | 8 => {
                let data = self.bytes(blocks);
                self.bytes[range].iter_mut().zip(&data).for_each(|(there, new)| *there |= new);
                (Media::OrWrite { lba, blocks: count, dpo, fua }, data, good, nothing)
            }
            9 => {
                let data = self.bytes(blocks);
                self.bytes[range].copy_from_slice(&data);
                (write_and_verify(lba, count, fua), data, good, nothing)
            }
            10 => {
                let atomic = unit.atomic.expect("both devices can");
                let (lba, blocks) = self.draw(u64::from(atomic.max));
                let (range, data) = (self.range(lba, blocks), self.bytes(blocks));
                self.bytes[range].copy_from_slice(&data);
                (Media::WriteAtomic { lba, blocks: blocks as u32, dpo, fua }, data, good, nothing)
            }
            11 => {
                let data = self.nearly(there.clone());
                (verify(lba, count, Check::Blocks), data.clone(), compared(&there, &data), nothing)
            }
            12 => {
                // All blocks but perhaps one are as the first.
                let block = self.bytes(1);
                let same = block.repeat(blocks as usize);
                self.rig.good(write(lba, count), &same);
                self.bytes[range.clone()].copy_from_slice(&same);
                let changed = self.nearly(same.clone());
                self.rig.good(write(lba, count), &changed);
                self.bytes[range].copy_from_slice(&changed);
                let end = match compared(&changed, &same) {
                    Outcome::Check(Sense { information: Some(at), .. }) => {
                        Outcome::Check(Sense::miscompare(at % self.block as u64))
                    }
                    other => other,
                };
                (verify(lba, count, Check::OneBlock), block, end, nothing)
            }
            13 | 14 => {
                let (lba, blocks) = self.draw(u64::from(unit.compare_and_write_max));
                let range = self.range(lba, blocks);
                let there = self.bytes[range.clone()].to_vec();
                let (before, after) = (self.nearly(there.clone()), self.bytes(blocks));
                let end = compared(&there, &before);
                if end == Outcome::Good {
                    self.bytes[range].copy_from_slice(&after);
                }
                (compare_and_write(lba, blocks as u32), [before, after].concat(), end, nothing)
            }
            15 | 16 => {
                let (lba, blocks) = self.draw(unit.write_same_max);
                let range = self.range(lba, blocks);
                let fill = if self.random.below(3) == 0 { Fill::Zeros } else { Fill::Data };
                let block = if fill == Fill::Data { self.bytes(1) } else { Vec::new() };
                match fill {
                    Fill::Zeros => self.bytes[range].fill(0),
                    Fill::Data => self.bytes[range].copy_from_slice(&block.repeat(blocks as usize)),
                }
                (write_same(lba, blocks, fill, dpo), block, good, nothing)
            }
            17 | 18 => {
                let mut ranges = Vec::new();
                for _ in 0..self.random.below(6) {
                    let (lba, blocks) = self.draw(4096);
                    ranges.push((lba, blocks as u32));
                }
                let mut end = good;
                if self.random.below(4) == 0 {
                    let at = self.random.below(ranges.len() + 1);
                    ranges.insert(at, (unit.blocks - 1, 2));
                    end = Outcome::Check(Sense::out_of_range(unit.blocks - 1));
                }
                if end == good {
                    for &(lba, blocks) in &ranges {
                        let range = self.range(lba, u64::from(blocks));
                        self.bytes[range].fill(0);
                    }
                }
                (UNMAP, unmap_list(&ranges), end, nothing)
            }
            _ => {
                let media = match self.random.below(8) {
                    0 => {
                        self.bytes.fill(0);
                        return (Media::FormatUnit, vec![0; [0, 4, 8][self.random.below(3)]], good, nothing);
                    }
                    1 => Media::SelfTest,
                    2 => STOP,
                    3 => Media::StartStop { start: true, flush: false },
                    4 => Media::PreFetch { lba, blocks },
                    5 => verify(lba, count, Check::Medium),
                    _ => Media::SynchronizeCache { lba, blocks },
                };
                (media, nothing, good, Vec::new())
            }
        }
    }

    fn compare_all(&self, after: &Media) {
        let most = self.rig.nexus.disk.unit().transfer_max;
        let total = (self.bytes.len() / self.block) as u64;
        for lba in (0..total).step_by(most as usize) {
            let blocks = u64::from(most).min(total - lba);
            let there = self.rig.read(lba, blocks as u32);
            let expected = &self.bytes[self.range(lba, blocks)];
            if there != expected {
                let at = there.iter().zip(expected).position(|(a, b)| a != b);
                panic!("byte {at:?} from block {lba} on differs after {after:?}");
            }
        }
    }

    fn run(device: Arc<dyn BlockDevice>, seed: u64, commands: usize) {
        let block = device.common().traits().block_size as usize;
        let bytes = vec![0; device.common().size() as usize];
        let mut model = Model { rig: Rig::new(device), bytes, block, random: Random(seed) };
        let in_use = model.rig.reactor.ios_in_use();
        for number in 0..commands {
            let (media, data, end, back) = model.next();
            let cut = match model.random.below(3) {
                0 => usize::MAX,
                _ => model.random.below(data.len() + 1),
            };
            let what = format!("seed {seed}, command {number}: {media:?}, {} bytes cut at {cut}", data.len());
            let (outcome, answer) = model.rig.send(media, &data, cut);
            assert_eq!(outcome, end, "{what}");
            assert!(answer == back, "{what}: other data");
            if number % 8 == 0 || media == Media::FormatUnit {
                model.compare_all(&media);
            }
        }
        assert_eq!(model.rig.reactor.ios_in_use(), in_use);
        model.rig.close();
    }
}

#[test]
fn every_command_does_to_the_blocks_what_it_says() {
    for seed in 1..4 {
        Model::run(ram((3 << 20) + 7 * 512, 512), seed, 600);
        Model::run(ram((5 << 20) + 3 * 4096, 4096), seed, 600);
    }
}

#[test]
fn it_does_so_on_a_device_with_a_cache_and_narrow_limits() {
    for seed in 10..13 {
        let device = Traced::device((2 << 20) + 512, |traits| {
            traits.limits.transfer_max = 20 << 10;
            traits.limits.boundary = 16 << 10;
            traits.limits.zeroes_max = 100 << 10;
        });
        Model::run(device, seed, 400);
    }
}

#[test]
fn every_cut_of_the_data_is_the_same_data() {
    let rig = Rig::new(ram(1 << 20, 512));
    let data = Random(5).bytes(1024);
    for cut in (0..=1024).step_by(31).chain([1, 511, 512, 513, 1023]) {
        for (media, data) in [
            (write(3, 2), data.clone()),
            (or_write(3, 2), data.clone()),
            (write_and_verify(3, 2, true), data.clone()),
            (verify(3, 2, Check::Blocks), data.clone()),
            (compare_and_write(3, 1), [&data[..512], &data[..512]].concat()),
            (write_same(3, 1, Fill::Data, false), data[..512].to_vec()),
            (verify(3, 1, Check::OneBlock), data[..512].to_vec()),
        ] {
            assert_eq!(rig.send(media, &data, cut), (Outcome::Good, Vec::new()), "{media:?} cut at {cut}");
        }
        assert_eq!(rig.read(3, 2), data);
        // The header of the list, its descriptor, and what is behind it.
        let list = [unmap_list(&[(3, 2)]), vec![0xff; 1000]].concat();
        assert_eq!(rig.send(UNMAP, &list, cut).0, Outcome::Good);
        assert_eq!(rig.read(3, 2), vec![0; 1024]);
    }
    rig.close();
}

#[test]
fn lists_of_unmap_are_as_long_as_block_limits_says() {
    let rig = Rig::new(ram(1 << 20, 512));
    rig.good(write(0, 2048), &vec![1; 1 << 20]);
    let ranges: Vec<(u64, u32)> = (0..256).map(|number| (8 * number, 4)).collect();
    let more = [&ranges[..], &[(4, 1)]].concat();
    assert_eq!(rig.sense(UNMAP, &unmap_list(&more)), Sense::parameter(2));
    assert_eq!(rig.read(0, 2048), vec![1; 1 << 20], "nothing was unmapped");
    let mut list = unmap_list(&ranges);
    list.resize(u16::MAX.into(), 0xff);
    rig.good(UNMAP, &list);
    let expected: Vec<u8> = (0..1 << 20).map(|at| u8::from(at / 512 % 8 >= 4)).collect();
    assert!(rig.read(0, 2048) == expected);
    assert_eq!(rig.sense(UNMAP, &[0; 3]), Sense::list_length());
    rig.good(UNMAP, &unmap_list(&[]));
    rig.close();
}

#[test]
fn format_takes_only_a_list_of_zeros() {
    let rig = Rig::new(ram(1 << 20, 512));
    rig.good(write(0, 8), &[1; 4096]);
    assert_eq!(rig.sense(Media::FormatUnit, &[0, 0x80, 0, 0]), Sense::parameter(1));
    assert_eq!(rig.sense(Media::FormatUnit, &[0, 0, 0, 8]), Sense::parameter(2));
    assert_eq!(rig.read(0, 8), [1; 4096]);
    rig.good(Media::FormatUnit, &[0, 2, 0, 0]);
    assert_eq!(rig.read(0, 8), [0; 4096]);
    rig.close();
}

#[test]
fn provisioning_is_told_to_the_end_of_the_unit() {
    // 8 Gi blocks: more than one descriptor can say.
    let device = ram(1 << 42, 512);
    let rig = Rig::with(device.clone(), Unit { blocks: (1 << 33) - 5, ..unit_of(&device) });
    rig.good(write(64, 16), &[1; 8192]);
    rig.good(UNMAP, &unmap_list(&[(72, 8)]));
    let status = |lba, allocation| rig.send(Media::GetLbaStatus { lba, allocation }, &[], 0);
    let (outcome, data) = status(5, 4096);
    assert_eq!(outcome, Outcome::Good);
    let told: Vec<(u64, u32, u8)> = data[8..]
        .chunks(16)
        .map(|descriptor| {
            let (lba, blocks) = (descriptor[..8].try_into().unwrap(), descriptor[8..12].try_into().unwrap());
            (u64::from_be_bytes(lba), u32::from_be_bytes(blocks), descriptor[12])
        })
        .collect();
    assert_eq!(told[..2], [(5, 59, 1), (64, 8, 0)]);
    let mut at = 72;
    for &(lba, blocks, status) in &told[2..] {
        assert_eq!((lba, status), (at, ProvisioningStatus::DEALLOCATED.0));
        at += u64::from(blocks);
    }
    // As far as the device tells.
    assert!(told.len() > 2 && at <= (1 << 33) - 5, "{told:?}");
    let first = [&[0, 0, 0, 20, 0, 0, 0, 0][..], &data[8..24]].concat();
    for (allocation, len) in [(24, 24), (39, 24), (23, 23), (10, 10), (1, 1), (0, 0)] {
        assert_eq!(status(5, allocation), (Outcome::Good, first[..len].to_vec()), "{allocation}");
    }
    let last = (1 << 33) - 6;
    let (_, data) = status(last, 4096);
    assert_eq!(data[3], 20, "the device has more blocks than the unit");
    assert_eq!((&data[8..16], &data[16..21]), (&u64::to_be_bytes(last)[..], &[0, 0, 0, 1, 1][..]));
    rig.close();
}

#[test]
fn what_no_descriptor_can_say_is_told_by_several() {
    use crate::bdev::device::null::{CompleteIn, Null, Options};
    let options = Options {
        name: "null".to_owned(),
        uuid: [0; 16],
        size: 1 << 42,
        block_size: 512,
        physical_block_size: 512,
        complete: CompleteIn::Poll,
    };
    let rig = Rig::new(Arc::new(Null::new(options)));
    let descriptor = |lba: u64, blocks: u32| [&lba.to_be_bytes()[..], &blocks.to_be_bytes(), &[1, 0, 0, 0]].concat();
    // Of 2^33 blocks all but seven.
    let rest = descriptor(7 + u64::from(u32::MAX), u32::MAX - 5);
    let (outcome, data) = rig.send(Media::GetLbaStatus { lba: 7, allocation: 4096 }, &[], 0);
    assert_eq!(outcome, Outcome::Good);
    let expected = [&[0, 0, 0, 36, 0, 0, 0, 0][..], &descriptor(7, u32::MAX), &rest].concat();
    assert_eq!(data, expected);
    rig.close();
}

#[test]
fn mapped_blocks_are_counted_of_what_the_unit_has() {
    let device = ram(64 << 20, 512);
    let rig = Rig::with(device.clone(), Unit { blocks: (64 << 11) - 8, ..unit_of(&device) });
    let used = || {
        let nexus = rig.nexus.clone();
        rig.reactor.run_until(async move {
            let io = nexus.disk.handle().reactor().create_io().unwrap();
            let (io, resources) = nexus.disk.resources(&nexus.context(), io).await;
            nexus.disk.handle().reactor().retire_io(io);
            resources
        })
    };
    let of = |used| Resources { available: None, used: Some(used) };
    assert_eq!(used(), of(0));
    // Pages of 4 KiB, the last of which is beyond the unit.
    rig.good(write(64, 16), &[1; 8192]);
    rig.good(write((64 << 11) - 24, 16), &[1; 8192]);
    assert_eq!(used(), of(32));
    rig.good(UNMAP, &unmap_list(&[(72, 8)]));
    assert_eq!(used(), of(24));
    rig.close();
}
