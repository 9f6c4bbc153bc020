//! Pairs and the forms of values.

use super::super::text::*;
use super::Random;

fn read(bytes: &[u8]) -> Result<Vec<(String, String)>, BadText> {
    let mut text = Text::new();
    text.add(bytes)?;
    Ok(text.pairs()?.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

#[test]
fn pairs_end_with_nul() {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(read(b""), Ok(vec![]));
    assert_eq!(read(b"\0\0\0"), Ok(vec![]));
    assert_eq!(read(b"A=b\0\0C=\0D=e=f\0"), Ok(vec![pair("A", "b"), pair("C", ""), pair("D", "e=f")]));
    assert_eq!(read(b"A=b"), Err(BadText::Unterminated));
    assert_eq!(read(b"A\0"), Err(BadText::NoValue));
    assert_eq!(read(b"=b\0"), Err(BadText::Key));
    assert_eq!(read(b"A B=c\0"), Err(BadText::Key));
    assert_eq!(read(b"A=\xff\0"), Err(BadText::Value));
    let key = |n| [&vec![b'k'; n][..], b"=v\0"].concat();
    assert!(read(&key(KEY_MAX)).is_ok());
    assert_eq!(read(&key(KEY_MAX + 1)), Err(BadText::Key));
    let value = |n| [b"K=", &vec![b'v'; n][..], b"\0"].concat();
    assert!(read(&value(LONG_VALUE_MAX)).is_ok());
    assert_eq!(read(&value(LONG_VALUE_MAX + 1)), Err(BadText::Value));
}

#[test]
fn text_of_several_pdus_has_a_limit() {
    let mut text = Text::new();
    text.add(b"Key=fir").unwrap();
    text.add(b"st\0").unwrap();
    assert_eq!(text.pairs().unwrap(), [("Key", "first")]);
    assert_eq!(text.add(&[0; TEXT_MAX]), Err(BadText::TooLong));
    assert_eq!(text.pairs().unwrap(), [("Key", "first")]);
    text.clear();
    assert_eq!(text.add(&[0; TEXT_MAX]), Ok(()));
}

#[test]
fn numbers() {
    for (text, value) in
        [("0", 0), ("007", 7), ("8192", 8192), ("0x1F", 31), ("0Xff", 255), ("18446744073709551615", u64::MAX)]
    {
        assert_eq!(number(text), Some(value), "{text}");
    }
    for text in
        ["", "-1", "+1", " 1", "1 ", "0x", "0xg", "1f", "18446744073709551616", "0x10000000000000000", "٣", "1,2"]
    {
        assert_eq!(number(text), None, "{text}");
    }
}

#[test]
fn booleans_have_one_spelling() {
    assert_eq!([boolean("Yes"), boolean("No"), boolean("yes"), boolean("1")], [Some(true), Some(false), None, None]);
    assert_eq!([yes_no(true), yes_no(false)], ["Yes", "No"]);
}

#[test]
fn binary_values() {
    // Base64 vectors of RFC 4648 §10.
    for (text, bytes) in [
        ("0bZg==", &b"f"[..]),
        ("0bZm8=", b"fo"),
        ("0bZm9v", b"foo"),
        ("0BZm9vYg==", b"foob"),
        ("0bZm9vYmE=", b"fooba"),
        ("0bZm9vYmFy", b"foobar"),
        ("0b+/+/", &[0xfb, 0xff, 0xbf]),
        ("0x666f6F", b"foo"),
        ("0X0", &[0]),
        ("0x123", &[1, 0x23]),
    ] {
        assert_eq!(binary(text, 6).as_deref(), Some(bytes), "{text}");
    }
    for text in [
        "",
        "0",
        "0x",
        "0b",
        "666f",
        "0xzz",
        "0x6g",
        "0bZg=",
        "0bZg",
        "0bZ===",
        "0b====",
        "0bZh==",
        "0bZm9=",
        "0bZ g=",
        "0bZg==Zg==",
        "0x66666666666666",
        "0bZm9vYmFyYg==",
        "0xé0",
    ] {
        assert_eq!(binary(text, 6), None, "{text}");
    }
    assert_eq!(hex(&[0, 0xab, 7]), "0x00ab07");
}

#[test]
fn hexadecimal_comes_back_and_noise_never_panics() {
    let mut random = Random(3);
    for _ in 0..5000 {
        let bytes: Vec<u8> = (0..1 + random.below(40)).map(|_| random.next() as u8).collect();
        assert_eq!(binary(&hex(&bytes), 40), Some(bytes));
        let noise: Vec<u8> = (0..random.below(30)).map(|_| random.one_of(b"0xbB=AZaz19+/\0,.K")).collect();
        let _ = read(&noise);
        let noise = String::from_utf8(noise).unwrap();
        let _ = (number(&noise), binary(&noise, 10));
    }
}
