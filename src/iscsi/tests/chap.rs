//! CHAP against hashes that were computed elsewhere, and everything that proves nothing.

use super::super::chap::Chap;
use super::*;

const RESPONSE_MD5: &str = "0xbd858d98d355c097381e493b584d7473";
const RESPONSE_SHA256: &str = "0x0155d83e3b37419c86c4fd3fc1e4fbf30f4e98118ef36737127099736fc1391b";

/// One step: the answer, or that nothing was proved.
fn step(state: &mut Chap, config: &ChapConfig, keys: &[(&str, &str)]) -> Result<Vec<String>, NotAuthentic> {
    let mut out = Vec::new();
    state.step(config, keys, &mut out).map(|()| pairs_of(&out))
}

/// An authentication whose algorithm has been chosen.
fn asked(config: &ChapConfig, algorithm: &str) -> Chap {
    let mut state = Chap::new(&ENTROPY);
    step(&mut state, config, &[("CHAP_A", algorithm)]).unwrap();
    state
}

#[test]
fn one_way_with_both_hashes() {
    let config = chap(false);
    let mut state = Chap::new(&ENTROPY);
    assert_eq!(
        step(&mut state, &config, &[("CHAP_A", "5")]).unwrap(),
        ["CHAP_A=5", "CHAP_I=90", "CHAP_C=0x0102030405060708090a0b0c0d0e0f10"]
    );
    assert!(!state.is_done());
    assert_eq!(step(&mut state, &config, &[]), Ok(vec![]), "a step without keys changes nothing");
    assert_eq!(step(&mut state, &config, &[("CHAP_N", "alice"), ("CHAP_R", RESPONSE_MD5)]), Ok(vec![]));
    assert!(state.is_done());

    let mut state = Chap::new(&ENTROPY);
    assert_eq!(
        step(&mut state, &config, &[("CHAP_A", "7")]).unwrap(),
        ["CHAP_A=7", "CHAP_I=90", "CHAP_C=0x0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"]
    );
    assert_eq!(step(&mut state, &config, &[("CHAP_R", RESPONSE_SHA256), ("CHAP_N", "alice")]), Ok(vec![]));
    assert!(state.is_done());
}

#[test]
fn the_response_in_any_form() {
    for response in [RESPONSE_MD5, "0XBD858D98D355C097381E493B584D7473", "0bvYWNmNNVwJc4Hkk7WE10cw=="] {
        let config = chap(false);
        let mut state = asked(&config, "5");
        assert_eq!(step(&mut state, &config, &[("CHAP_N", "alice"), ("CHAP_R", response)]), Ok(vec![]));
    }
}

#[test]
fn the_first_algorithm_that_both_know() {
    let config = chap(false);
    for (list, chosen) in [("5,6,7,8", "CHAP_A=5"), ("8,7,6,5", "CHAP_A=7"), ("6,0x5", "CHAP_A=5")] {
        let answer = step(&mut Chap::new(&ENTROPY), &config, &[("CHAP_A", list)]).unwrap();
        assert_eq!(answer[0], chosen, "{list}");
    }
    for list in ["", "56", "6", "6,8", ",", "5 ", "None"] {
        assert_eq!(step(&mut Chap::new(&ENTROPY), &config, &[("CHAP_A", list)]), Err(NotAuthentic), "{list}");
    }
}

#[test]
fn what_proves_nothing() {
    let config = chap(true);
    let wrong = "0xbd858d98d355c097381e493b584d7474";
    let oversize = "0bb3ZlcnNpemUKvYWNmNNVwJc4Hkk7WE10cw==";
    for keys in [
        &[("CHAP_N", "alice"), ("CHAP_R", wrong)][..],
        &[("CHAP_N", "alice"), ("CHAP_R", oversize)],
        &[("CHAP_N", "alice"), ("CHAP_R", RESPONSE_SHA256)],
        &[("CHAP_N", "alice"), ("CHAP_R", "0xbd858d98d355c097381e493b584d74")],
        &[("CHAP_N", "alice"), ("CHAP_R", "")],
        &[("CHAP_N", "Alice"), ("CHAP_R", RESPONSE_MD5)],
        &[("CHAP_N", "alic"), ("CHAP_R", RESPONSE_MD5)],
        &[("CHAP_N", ""), ("CHAP_R", RESPONSE_MD5)],
        &[("CHAP_R", RESPONSE_MD5)],
        &[("CHAP_N", "alice")],
        &[("CHAP_A", "5")],
        &[("CHAP_N", "alice"), ("CHAP_R", RESPONSE_MD5), ("CHAP_A", "5")],
        &[("CHAP_N", "alice"), ("CHAP_R", RESPONSE_MD5), ("CHAP_X", "5")],
        &[("CHAP_N", "alice"), ("CHAP_R", RESPONSE_MD5), ("CHAP_I", "7")],
        &[("CHAP_N", "alice"), ("CHAP_R", RESPONSE_MD5), ("CHAP_C", "0xa0")],
        &[("CHAP_N", "alice"), ("CHAP_R", RESPONSE_MD5), ("CHAP_I", "256"), ("CHAP_C", "0xa0")],
        &[("CHAP_N", "alice"), ("CHAP_R", RESPONSE_MD5), ("CHAP_I", "7"), ("CHAP_C", "0x")],
    ] {
        let mut state = asked(&config, "5");
        assert_eq!(step(&mut state, &config, keys), Err(NotAuthentic), "{keys:?}");
        assert!(!state.is_done());
    }
    let mut state = Chap::new(&ENTROPY);
    assert_eq!(step(&mut state, &config, &[("CHAP_N", "alice"), ("CHAP_R", RESPONSE_MD5)]), Err(NotAuthentic));
    // After the proof there is nothing left to say.
    let mut state = asked(&config, "5");
    step(&mut state, &config, &[("CHAP_N", "alice"), ("CHAP_R", RESPONSE_MD5)]).unwrap();
    assert_eq!(step(&mut state, &config, &[("CHAP_A", "5")]), Err(NotAuthentic));
}

#[test]
fn mutual() {
    for (algorithm, response, expected) in [
        ("5", RESPONSE_MD5, "CHAP_R=0x40eef6d0745aeb8b7df404b5eaf5adc0"),
        ("7", RESPONSE_SHA256, "CHAP_R=0x6c08b5e6808ce2d14707a38c79b7af11576e074c51cdfe49b612edfbdf71d064"),
    ] {
        let challenge = "0xa0a1a2a3a4a5a6a7a8a9aaabacadaeaf";
        let keys = [("CHAP_N", "alice"), ("CHAP_R", response), ("CHAP_I", "0x7"), ("CHAP_C", challenge)];
        let config = chap(true);
        let mut state = asked(&config, algorithm);
        assert_eq!(step(&mut state, &config, &keys).unwrap(), ["CHAP_N=target", expected]);
        // A target without a secret of its own has nothing to prove with.
        let config = chap(false);
        let mut state = asked(&config, algorithm);
        assert_eq!(step(&mut state, &config, &keys), Err(NotAuthentic));
        // No answer to who has not proved itself.
        let config = chap(true);
        let mut state = asked(&config, algorithm);
        let keys = [("CHAP_N", "mallory"), keys[1], keys[2], keys[3]];
        let mut out = Vec::new();
        assert!(state.step(&config, &keys, &mut out).is_err() && out.is_empty());
    }
}

#[test]
fn our_own_challenge_is_not_answered() {
    let config = chap(true);
    for (algorithm, response, challenge) in [
        ("5", RESPONSE_MD5, "0x0102030405060708090a0b0c0d0e0f10"),
        ("5", RESPONSE_MD5, "0x0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"),
        ("7", RESPONSE_SHA256, "0x0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"),
    ] {
        let mut state = asked(&config, algorithm);
        let keys = [("CHAP_N", "alice"), ("CHAP_R", response), ("CHAP_I", "7"), ("CHAP_C", challenge)];
        assert_eq!(step(&mut state, &config, &keys), Err(NotAuthentic));
    }
}

#[test]
fn secrets_have_a_length_and_are_not_printed() {
    assert_eq!(Secret::new(vec![7; 11]), Err(BadChap::SecretLength));
    assert_eq!(Secret::new(vec![7; 256]), Err(BadChap::SecretLength));
    let secret = Secret::new(b"0123456789ab".to_vec()).unwrap();
    let one = Credentials::new("a".to_owned(), secret.clone()).unwrap();
    let other = Credentials::new("b".to_owned(), secret.clone()).unwrap();
    assert_eq!(ChapConfig::new(one, Some(other)), Err(BadChap::SameSecret));
    for name in ["", "a\0b", &"n".repeat(256)] {
        assert_eq!(Credentials::new(name.to_owned(), secret.clone()), Err(BadChap::Name));
    }
    let config = chap(true);
    let login = Login::new(1, &ENTROPY);
    let printed = format!("{config:?} {secret:?} {login:?} {} {}", NotAuthentic, BadChap::SameSecret);
    for part in ["0123456789ab", "a secret of", "another", "48, 49, 50", "97, 32, 115"] {
        assert!(!printed.contains(part), "{part}");
    }
}

#[test]
fn names_may_look_like_numbers() {
    for name in ["0xabc", "0babc", "0"] {
        let secret = Secret::new(b"a secret of 24 bytes....".to_vec()).unwrap();
        let config = ChapConfig::new(Credentials::new(name.to_owned(), secret).unwrap(), None).unwrap();
        let mut state = asked(&config, "5");
        assert_eq!(step(&mut state, &config, &[("CHAP_N", name), ("CHAP_R", RESPONSE_MD5)]), Ok(vec![]));
    }
}
