//! Logical unit numbers: 8 bytes, of which the first level is used (SAM-5 §4.7).

/// A logical unit number as 8 bytes on the wire.
pub const LUN_LEN: usize = 8;

/// Largest logical unit number: flat space addressing has 14 bits.
pub const LUN_MAX: u16 = 0x3fff;

/// First number that peripheral device addressing cannot hold.
const PERIPHERAL_END: u16 = 256;

/// Addressing methods, bits 7:6 of byte 0.
const PERIPHERAL: u8 = 0b00;
const FLAT: u8 = 0b01;

/// The number of the logical unit that `bytes` address: peripheral device addressing on bus 0 or flat space addressing, one level. `None`:
/// another method, a bus or a second level, none of which leads to a logical unit here.
pub fn lun_decode(bytes: [u8; LUN_LEN]) -> Option<u16> {
    if bytes[2..] != [0; 6] {
        return None;
    }
    let number = u16::from_be_bytes([bytes[0] & 0x3f, bytes[1]]);
    match bytes[0] >> 6 {
        PERIPHERAL if number < PERIPHERAL_END => Some(number),
        FLAT => Some(number),
        _ => None,
    }
}

/// How REPORT LUNS shows logical unit `lun`: peripheral device addressing below 256, else flat space addressing. Bits over [`LUN_MAX`] are
/// cut.
pub fn lun_encode(lun: u16) -> [u8; LUN_LEN] {
    let lun = lun & LUN_MAX;
    let [high, low] = lun.to_be_bytes();
    let method = if lun < PERIPHERAL_END { PERIPHERAL } else { FLAT };
    [method << 6 | high, low, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_the_wire() {
        for lun in 0..=LUN_MAX {
            assert_eq!(lun_decode(lun_encode(lun)), Some(lun));
        }
        assert_eq!(lun_encode(255), [0, 255, 0, 0, 0, 0, 0, 0]);
        assert_eq!(lun_encode(256), [0x41, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(lun_encode(0x3fff), [0x7f, 0xff, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn other_methods_lead_nowhere() {
        assert_eq!(lun_decode([0x40, 5, 0, 0, 0, 0, 0, 0]), Some(5));
        assert_eq!(lun_decode([0x01, 5, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(lun_decode([0x80, 5, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(lun_decode([0xc1, 1, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(lun_decode([0, 5, 0, 0, 0, 0, 0, 1]), None);
    }
}
