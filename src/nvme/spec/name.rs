//! Names as people write them: NQNs, and the UUIDs in some of them.

use uuid::Uuid;

use super::NQN_MAX_LEN;
use crate::util::{Bad, bad};

const NQN_UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// Checks an NVMe qualified name (Base §4.5): `nqn.yyyy-mm.reverse.domain:name`, or
/// `nqn.2014-08.org.nvmexpress:uuid:` and a UUID. White space and control characters are refused too, because the name
/// stands in commands.
///
/// # Errors
/// What is wrong with it.
pub fn check_nqn(nqn: &str) -> Result<(), Bad> {
    let example = "write nqn.YYYY-MM.REVERSE.DOMAIN:NAME, such as \"nqn.2026-11.io.reactor:vol0\"";
    if nqn.len() > NQN_MAX_LEN {
        return bad(
            format!("this NQN has {} bytes, more than the {NQN_MAX_LEN} of NVMe", nqn.len()),
            "write a shorter name after the colon",
        );
    }
    if nqn.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return bad(format!("the NQN \"{nqn}\" holds white space or a control character"), example);
    }
    if let Some(uuid) = nqn.strip_prefix(NQN_UUID_PREFIX) {
        return parse_uuid(uuid).map(drop);
    }
    let is_not = |why: &str| bad(format!("\"{nqn}\" is not an NQN: {why}"), example);
    let Some(rest) = nqn.strip_prefix("nqn.") else {
        return is_not("it does not start with \"nqn.\"");
    };
    let Some((authority, name)) = rest.split_once(':') else {
        return is_not("it has no colon");
    };
    if name.is_empty() {
        return is_not("nothing follows the colon");
    }
    let (date, domain) = authority.split_once('.').unwrap_or((authority, ""));
    let date_fits = date.len() == 7
        && date.bytes().enumerate().all(|(at, b)| if at == 4 { b == b'-' } else { b.is_ascii_digit() })
        && ("01"..="12").contains(&&date[5..]);
    if !date_fits {
        return is_not(&format!("\"{date}\" is not a year and month"));
    }
    let label_fits = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if !domain.split('.').all(label_fits) {
        return is_not(&format!("\"{domain}\" is not a domain name in reverse order"));
    }
    Ok(())
}

/// A UUID in its hyphenated form (RFC 9562, section 4).
///
/// # Errors
/// Any other form, and the nil UUID, which NVMe reads as "no UUID".
pub fn parse_uuid(text: &str) -> Result<Uuid, Bad> {
    let help = "write 32 hexadecimal digits in groups of 8-4-4-4-12, as uuidgen prints them";
    match Uuid::try_parse(text) {
        Ok(uuid) if uuid.is_nil() => {
            bad("the nil UUID identifies nothing", "write another one, as uuidgen prints them")
        }
        Ok(uuid) if text.len() == uuid::fmt::Hyphenated::LENGTH => Ok(uuid),
        _ => bad(format!("\"{text}\" is not a UUID"), help),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::spec::DISCOVERY_NQN;

    #[test]
    fn nqns() {
        let longest = format!("nqn.2026-11.io.reactor:{}", "x".repeat(200));
        assert_eq!(longest.len(), 223);
        for nqn in [
            "nqn.2026-11.io.reactor:vol0",
            "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
            "nqn.2016-06.io.spdk:cnode1:a",
            "nqn.2026-01.a:ü",
            longest.as_str(),
        ] {
            assert_eq!(check_nqn(nqn), Ok(()), "{nqn}");
        }
        let too_long = format!("{longest}x");
        for nqn in [
            "",
            "iqn.2026-11.io.reactor:vol0",
            "nqn.2026-13.io.reactor:vol0",
            "nqn.2026-00.io.reactor:vol0",
            "nqn.26-11.io.reactor:vol0",
            "nqn.2026-1é.io.reactor:vol0",
            "nqn.2026-11:vol0",
            "nqn.2026-11.io..reactor:vol0",
            "nqn.2026-11.-io:vol0",
            "nqn.2026-11.io_x:vol0",
            "nqn.2026-11.io.reactor",
            "nqn.2026-11.io.reactor:",
            "nqn.2026-11.io.reactor:a b",
            "nqn.2026-11.io.reactor:a\0b",
            "nqn.2014-08.org.nvmexpress:uuid:1",
            DISCOVERY_NQN,
            too_long.as_str(),
        ] {
            assert!(check_nqn(nqn).is_err(), "{nqn}");
        }
    }

    #[test]
    fn uuids_have_one_form() {
        assert!(parse_uuid("F81d4fae-7dec-11d0-a765-00a0c91e6bf6").is_ok());
        for text in [
            "f81d4fae7dec11d0a76500a0c91e6bf6",
            "{f81d4fae-7dec-11d0-a765-00a0c91e6bf6}",
            "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
            "00000000-0000-0000-0000-000000000000",
            "f81d4fae-7dec-11d0-a765-00a0c91e6bfg",
            "",
        ] {
            assert!(parse_uuid(text).is_err(), "{text}");
        }
    }
}
