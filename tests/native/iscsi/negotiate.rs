//! Logins in every legal order, every key to its rule, and what a login must not be.

use std::time::Duration;

use super::super::host::pattern;
use super::super::server::Place;
use super::initiator::cdb::{read16, write16};
use super::initiator::login::{
    FULL, Keys, NOT_FOUND, OPERATIONAL, Refusal, SECURITY, SESSION_DOES_NOT_EXIST, keys, text,
};
use super::initiator::pdu::{Pdu, flag, op};
use super::initiator::{Got, Login, Offer, Options, PATIENCE, Params, Session, Wire};
use super::{BLOCK, IQN, config, config_with, portal, session_with};

type Pairs = Vec<(String, String)>;

fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

/// An offer in which nothing is the default.
const OFFER: Offer = Offer {
    header_digest: Some("CRC32C,None"),
    data_digest: Some("None"),
    initial_r2t: Some(false),
    immediate_data: Some(true),
    max_recv: Some(16_384),
    max_burst: Some(65_536),
    first_burst: Some(8192),
    max_r2t: Some(2),
    max_connections: Some(2),
    protocol_level: Some(2),
};

/// Data there and back, a ping and the end: the session is one.
fn use_up(mut session: Session) {
    session.settle(0);
    let data = pattern(100 * BLOCK, 7);
    session.command(0, &write16(3, 100, 0), &data, 0).good();
    assert!(session.command(0, &read16(3, 100), &[], data.len()).good() == data);
    session.ping(0, b"are you there?");
    session.end();
}

/// A way to log in: the requests after each other.
type Order = (&'static str, fn(&mut Login, &Options) -> Result<Keys, Refusal>);

/// Sends the last request of the login again, empty, until the target goes on too.
fn finish(login: &mut Login, stage: u8, mut done: bool, found: &mut Keys) -> Result<(), Refusal> {
    while !done {
        let (answer, more) = login.ask((stage, FULL, true), &[])?;
        found.extend(more);
        done = answer.transit;
    }
    Ok(())
}

const ORDERS: [Order; 7] = [
    ("all in one request", |login, options| {
        let (answer, mut found) =
            login.ask((OPERATIONAL, FULL, true), &[options.names(), options.offer.pairs()].concat())?;
        finish(login, OPERATIONAL, answer.transit, &mut found)?;
        Ok(found)
    }),
    ("security without a word of it", |login, options| {
        let (answer, _) = login.ask((SECURITY, OPERATIONAL, true), &options.names())?;
        assert!(answer.transit);
        let (answer, mut found) = login.ask((OPERATIONAL, FULL, true), &options.offer.pairs())?;
        finish(login, OPERATIONAL, answer.transit, &mut found)?;
        Ok(found)
    }),
    ("security in two requests", |login, options| {
        login.ask((SECURITY, OPERATIONAL, false), &options.names())?;
        let (answer, found) = login.ask((SECURITY, OPERATIONAL, true), &[pair("AuthMethod", "None,CHAP")])?;
        assert_eq!((answer.transit, found["AuthMethod"].as_str()), (true, "None"));
        let (answer, mut found) = login.ask((OPERATIONAL, FULL, true), &options.offer.pairs())?;
        finish(login, OPERATIONAL, answer.transit, &mut found)?;
        Ok(found)
    }),
    ("a key at a time", |login, options| {
        let (_, mut found) = login.ask((OPERATIONAL, FULL, false), &options.names())?;
        for one in options.offer.pairs() {
            let (answer, more) = login.ask((OPERATIONAL, FULL, false), std::slice::from_ref(&one))?;
            assert!(!answer.transit);
            found.extend(more);
        }
        finish(login, OPERATIONAL, false, &mut found)?;
        Ok(found)
    }),
    ("keys backwards", |login, options| {
        let mut pairs: Pairs = [options.names(), options.offer.pairs()].concat();
        pairs.reverse();
        let (answer, mut found) = login.ask((OPERATIONAL, FULL, true), &pairs)?;
        finish(login, OPERATIONAL, answer.transit, &mut found)?;
        Ok(found)
    }),
    ("a few bytes at a time", |login, options| {
        let pairs = text(&[options.names(), options.offer.pairs()].concat());
        let answer = login.exchange((OPERATIONAL, FULL, true), &pairs, 11)?;
        let mut found = keys(&text(&answer.pairs));
        finish(login, OPERATIONAL, answer.transit, &mut found)?;
        Ok(found)
    }),
    ("cut within keys and values", |login, options| {
        let pairs = text(&[options.names(), options.offer.pairs()].concat());
        let answer = login.exchange((OPERATIONAL, FULL, true), &pairs, 100)?;
        let mut found = keys(&text(&answer.pairs));
        finish(login, OPERATIONAL, answer.transit, &mut found)?;
        Ok(found)
    }),
];

#[test]
fn every_legal_order_comes_to_the_same_session() {
    let server = Place::new().serve(&config());
    let mut params: Option<Params> = None;
    for (number, (name, order)) in ORDERS.iter().enumerate() {
        let options = Options::new(IQN, number as u8).with(OFFER);
        let mut login = Login::new(portal(&server), &options);
        let found = order(&mut login, &options).unwrap_or_else(|status| panic!("{name}: refused, {status:#06x}"));
        let agreed = login.begin(&options, &found);
        println!("{name}: {found:?}");
        assert_eq!(params.get_or_insert(agreed.clone()), &agreed, "{name}");
        use_up(Session::begin(login, agreed, &options));
    }
    // What the target is able to do and was offered.
    let params = params.unwrap();
    assert!(params.header_digest && !params.data_digest && !params.initial_r2t && params.immediate_data, "{params:?}");
    assert_eq!((params.max_burst, params.first_burst, params.max_r2t, params.max_connections), (65_536, 8192, 2, 2));
    server.stop();
}

#[test]
fn a_login_without_any_key_has_every_default() {
    let server = Place::new().serve(&config());
    let options = Options::new(IQN, 1);
    let mut login = Login::new(portal(&server), &options);
    let (answer, found) = login.ask((SECURITY, FULL, true), &options.names()).unwrap();
    assert!(answer.transit);
    let params = login.begin(&options, &found);
    assert_eq!((params.max_burst, params.first_burst, params.max_r2t), (262_144, 65_536, 1));
    assert!(params.initial_r2t && params.immediate_data && !params.header_digest && !params.data_digest);
    use_up(Session::begin(login, params, &options));
    server.stop();
}

#[test]
fn every_key_comes_to_what_its_rule_says() {
    let server = Place::new().serve(&config());
    let number = |value: u32| Some(value);
    let mut offers = Vec::new();
    for bits in 0..16 {
        let (yes, no) = (Some(bits & 1 != 0), Some(bits & 2 != 0));
        let digest = |bit| Some(if bits & bit != 0 { "CRC32C" } else { "None,CRC32C" });
        offers.push(Offer {
            initial_r2t: yes,
            immediate_data: no,
            header_digest: digest(4),
            data_digest: digest(8),
            ..OFFER
        });
    }
    for (max_burst, first_burst, max_recv) in
        [(512, 512, 512), (16_777_215, 16_777_215, 16_777_215), (4096, 2000, 1001), (1 << 20, 512, 65_537)]
    {
        let lengths = Offer {
            max_burst: number(max_burst),
            first_burst: number(first_burst),
            max_recv: number(max_recv),
            ..Offer::PLAIN
        };
        offers.push(lengths);
    }
    for (max_r2t, max_connections) in [(1, 1), (65_535, 65_535), (3, 2)] {
        offers.push(Offer { max_r2t: number(max_r2t), max_connections: number(max_connections), ..Offer::PLAIN });
    }
    for offer in offers {
        // The rules themselves stand where the answers are read.
        let session = session_with(portal(&server), 1, offer.clone());
        let params = session.params().clone();
        if let Some(digest) = offer.header_digest {
            assert_eq!(params.header_digest, digest == "CRC32C", "the first of the list that both know: {offer:?}");
        }
        use_up(session);
    }
    server.stop();
}

#[test]
fn strange_keys_have_their_answers() {
    let server = Place::new().serve(&config());
    // What is offered, and the answers that the standard allows; no answer at all is none of them.
    let rows: [(&str, &str, &[&str]); 9] = [
        ("X-com.example.what", "yes", &["NotUnderstood"]),
        ("NeverHeardOf", "1", &["NotUnderstood"]),
        ("OFMarker", "No", &["No", "NotUnderstood", "Reject"]),
        ("IFMarker", "No", &["No", "NotUnderstood", "Reject"]),
        ("DataPDUInOrder", "No", &["Yes", "No"]),
        ("DataSequenceInOrder", "No", &["Yes", "No"]),
        ("ErrorRecoveryLevel", "2", &["0"]),
        ("DefaultTime2Wait", "5", &["2", "5", "0"]),
        ("TaskReporting", "RFC3720", &["RFC3720"]),
    ];
    for (key, value, allowed) in rows {
        let options = Options::new(IQN, 1);
        let mut login = Login::new(portal(&server), &options);
        login.ask((OPERATIONAL, FULL, false), &options.names()).unwrap();
        let (_, found) = login.ask((OPERATIONAL, FULL, false), &[pair(key, value)]).unwrap();
        let answer = found.get(key).unwrap_or_else(|| panic!("{key} has no answer"));
        // A time may be any that is at least ours: the larger of both wins (RFC 7143 §13.15).
        let fits = allowed.contains(&answer.as_str())
            || key == "DefaultTime2Wait" && answer.parse::<u32>().is_ok_and(|time| time >= 5);
        assert!(fits, "{key}={value} was answered by {answer}");
    }
    server.stop();
}

/// What a first request is, and the refusals that may follow. An end of the connection without a response is always right for
/// what is no login at all.
type Wrong = (&'static str, fn(&Login, &Options) -> Pdu, &'static [Refusal]);

fn first(login: &Login, options: &Options, more: &[(&str, &str)]) -> Pdu {
    let more: Pairs = more.iter().map(|(key, value)| pair(key, value)).collect();
    login.request((OPERATIONAL, FULL, true), false, &text(&[options.names(), more].concat()))
}

const INITIATOR_ERROR: Refusal = 0x0200;
const UNSUPPORTED_VERSION: Refusal = 0x0205;
const MISSING_PARAMETER: Refusal = 0x0207;
const SESSION_TYPE: Refusal = 0x0209;
const INVALID_REQUEST: Refusal = 0x020b;

const WRONG: [Wrong; 17] = [
    (
        "version 1 at least",
        |login, options| {
            let mut pdu = first(login, options, &[]);
            (pdu.bhs[2], pdu.bhs[3]) = (1, 1);
            pdu
        },
        &[UNSUPPORTED_VERSION],
    ),
    (
        "an unknown target",
        |login, options| {
            let options = Options { target: Some(format!("{IQN}x")), ..options.clone() };
            first(login, &options, &[])
        },
        &[NOT_FOUND],
    ),
    (
        "a session that is not there",
        |login, options| first(login, options, &[]).with16(14, 4711),
        &[SESSION_DOES_NOT_EXIST],
    ),
    (
        "no name of the initiator",
        |login, _| login.request((OPERATIONAL, FULL, true), false, &text(&[pair("TargetName", IQN)])),
        &[MISSING_PARAMETER, INITIATOR_ERROR],
    ),
    (
        "no name of the target",
        |login, options| login.request((OPERATIONAL, FULL, true), false, &text(&options.names()[..2])),
        &[MISSING_PARAMETER, INITIATOR_ERROR],
    ),
    (
        "a session of another type",
        |login, options| {
            let pairs = text(&[options.names()[0].clone(), pair("SessionType", "Sideways"), pair("TargetName", IQN)]);
            login.request((OPERATIONAL, FULL, true), false, &pairs)
        },
        &[SESSION_TYPE, INITIATOR_ERROR],
    ),
    (
        "a key twice",
        |login, options| first(login, options, &[("MaxBurstLength", "4096"), ("MaxBurstLength", "8192")]),
        &[INITIATOR_ERROR, INVALID_REQUEST],
    ),
    (
        "text without a value",
        |login, _| login.request((OPERATIONAL, FULL, true), false, b"InitiatorName\0"),
        &[INITIATOR_ERROR, INVALID_REQUEST, MISSING_PARAMETER],
    ),
    (
        "text without an end",
        |login, options| {
            let mut pdu = first(login, options, &[]);
            pdu.data.pop();
            pdu
        },
        &[INITIATOR_ERROR, INVALID_REQUEST, MISSING_PARAMETER],
    ),
    (
        "bytes that are no text",
        |login, _| login.request((OPERATIONAL, FULL, true), false, &[0xff; 200]),
        &[INITIATOR_ERROR, INVALID_REQUEST, MISSING_PARAMETER],
    ),
    (
        "a key that is too long",
        |login, options| first(login, options, &[(&"K".repeat(64), "1")]),
        &[INITIATOR_ERROR, INVALID_REQUEST],
    ),
    (
        "a name that is too long",
        |login, options| {
            let options = Options { initiator: format!("iqn.2026-11.test:{}", "n".repeat(300)), ..options.clone() };
            first(login, &options, &[])
        },
        &[INITIATOR_ERROR, INVALID_REQUEST],
    ),
    (
        "the stage that is reserved",
        |login, options| {
            let mut pdu = first(login, options, &[]);
            pdu.bhs[1] = flag::FINAL | OPERATIONAL << 2 | 2;
            pdu
        },
        &[INITIATOR_ERROR, INVALID_REQUEST],
    ),
    (
        "a stage that goes back",
        |login, options| {
            let mut pdu = first(login, options, &[]);
            pdu.bhs[1] = flag::FINAL | OPERATIONAL << 2 | SECURITY;
            pdu
        },
        &[INITIATOR_ERROR, INVALID_REQUEST],
    ),
    (
        "a login in the full feature phase",
        |login, options| {
            let mut pdu = first(login, options, &[]);
            pdu.bhs[1] = flag::FINAL | FULL << 2 | FULL;
            pdu
        },
        &[INITIATOR_ERROR, INVALID_REQUEST],
    ),
    (
        "to go on and not to",
        |login, options| {
            let mut pdu = first(login, options, &[]);
            pdu.bhs[1] |= flag::CONTINUE;
            pdu
        },
        &[INITIATOR_ERROR, INVALID_REQUEST],
    ),
    (
        "a number that is none",
        |login, options| first(login, options, &[("MaxBurstLength", "many")]),
        &[INITIATOR_ERROR, INVALID_REQUEST],
    ),
];

#[test]
fn wrong_logins_are_refused_by_their_reason() {
    let server = Place::new().serve(&config());
    for (name, make, allowed) in WRONG {
        let options = Options::new(IQN, 1);
        let mut login = Login::new(portal(&server), &options);
        let pdu = make(&login, &options);
        login.wire.send(&pdu);
        match login.wire.next(PATIENCE) {
            Got::Pdu(answer) => {
                assert_eq!(answer.opcode(), op::LOGIN_RESPONSE, "{name}");
                let status = answer.get16(36);
                // An answer of `Reject` to one key is not a refusal of the login (RFC 7143 §6.2).
                let rejected = keys(&answer.data).values().any(|value| value == "Reject");
                assert!(allowed.contains(&status) || status == 0 && rejected, "{name}: {status:#06x}");
                assert!(
                    rejected || login.wire.next(PATIENCE).is_over(),
                    "{name}: the connection stays after the refusal"
                );
            }
            other => assert!(other.is_over(), "{name}: {other:?}"),
        }
    }
    use_up(session_with(portal(&server), 1, OFFER));
    server.stop();
}

#[test]
fn text_without_an_end_ends_the_login() {
    let server = Place::new().serve(&config());
    let options = Options::new(IQN, 1);
    let mut login = Login::new(portal(&server), &options);
    let part = vec![b'a'; 8000];
    // Sixteen MiB of one key, if it were taken.
    let taken = (0..2000).take_while(|_| {
        let pdu = login.request((OPERATIONAL, 0, false), true, &part);
        login.wire.send(&pdu) && matches!(login.response(), Ok((answer, _)) if answer.data.is_empty())
    });
    let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| taken.count())).unwrap_or(1);
    assert!(taken * part.len() <= 64 << 10, "{taken} pieces of {} bytes were kept", part.len());
    server.stop();
}

#[test]
fn what_is_no_login_closes_the_connection() {
    let server = Place::new().serve(&config());
    let command = Pdu::new(op::COMMAND, flag::FINAL | flag::READ);
    let long = {
        let mut bytes = Pdu::new(op::LOGIN | op::IMMEDIATE, 0).encode(false, false);
        bytes[5..8].fill(0xff);
        bytes
    };
    let with_ahs = {
        let mut bytes = Pdu::new(op::LOGIN | op::IMMEDIATE, 0).encode(false, false);
        bytes[4] = 0xff;
        bytes
    };
    let rows = [
        ("a command", command.encode(false, false)),
        ("sixteen MiB", long),
        ("additional headers", with_ahs),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: here.example.org\r\nAccept: */*\r\n\r\n".to_vec()),
        ("zeros", vec![0; 4096]),
    ];
    for (name, bytes) in rows {
        let mut wire = Wire::connect(portal(&server));
        wire.send_bytes(&bytes);
        let answers = wire.rest();
        assert!(
            answers.iter().all(|pdu| pdu.opcode() == op::LOGIN_RESPONSE && pdu.get16(36) != 0),
            "{name}: {answers:02x?}"
        );
    }
    server.stop();
}

#[test]
fn digests_are_what_the_target_is_told() {
    for (policy, header) in [("require", true), ("off", false)] {
        let target = format!("luns = [{{ bdev = \"ram0\" }}, {{ bdev = \"ram1\" }}]\nheader_digest = \"{policy}\"");
        let server = Place::new().serve(&config_with(r#"listen = ["127.0.0.1:0"]"#, &target));
        let both = Offer { header_digest: Some("None,CRC32C"), data_digest: Some("CRC32C,None"), ..Offer::PLAIN };
        let session = session_with(portal(&server), 1, both.clone());
        assert_eq!((session.params().header_digest, session.params().data_digest), (header, true), "{policy}");
        use_up(session);
        let refused = if header { "None" } else { "CRC32C" };
        let options = Options::new(IQN, 2).with(Offer { header_digest: Some(refused), ..both });
        let mut login = Login::new(portal(&server), &options);
        let (_, found) = match login.ask((OPERATIONAL, FULL, true), &[options.names(), options.offer.pairs()].concat())
        {
            Ok(answer) => answer,
            Err(status) => {
                assert_eq!(status >> 8, 2, "an error of the initiator");
                server.stop();
                continue;
            }
        };
        assert_eq!(found["HeaderDigest"], "Reject", "{policy}");
        assert!(login.wire.next(Duration::from_millis(500)) != Got::End || header, "{policy}");
        server.stop();
    }
}

#[test]
fn a_logout_tells_the_times_that_were_agreed() {
    let server = Place::new().serve(&config());
    // The larger time to wait and the smaller one to retain (RFC 7143 §13.15, §13.16): ours are 2 and 0. Without a word the defaults hold.
    let rows = [
        (Some((0, 0)), (2, 0)),
        (Some((2, 20)), (2, 0)),
        (Some((5, 3600)), (5, 0)),
        (Some((3600, 1)), (3600, 0)),
        (None, (2, 20)),
    ];
    for (said, (wait, retain)) in rows {
        let options = Options::new(IQN, 1).with(Offer { max_connections: Some(2), ..Offer::PLAIN });
        let mut pairs = [options.names(), options.offer.pairs()].concat();
        if let Some((wait, retain)) = said {
            pairs.push(pair("DefaultTime2Wait", &format!("{wait}")));
            pairs.push(pair("DefaultTime2Retain", &format!("{retain}")));
        }
        let mut login = Login::new(portal(&server), &options);
        let (mut answer, mut found) = login.ask((OPERATIONAL, FULL, true), &pairs).unwrap();
        while !answer.transit {
            let more;
            (answer, more) = login.ask((OPERATIONAL, FULL, true), &[]).unwrap();
            found.extend(more);
        }
        let told = |key: &str| found.get(key).map(|value| value.parse::<u16>().unwrap());
        let answered = said.map(|_| (wait, retain)).unzip();
        assert_eq!((told("DefaultTime2Wait"), told("DefaultTime2Retain")), answered, "{said:?}");
        let params = login.begin(&options, &found);
        let mut session = Session::begin(login, params, &options);
        session.settle(0);
        session.join(portal(&server), 7).unwrap();
        // Response, Time2Wait, Time2Retain (RFC 7143 §11.15): of a connection that has joined, and of the session.
        let times = |pdu: &Pdu| (pdu.bhs[2], pdu.get16(40), pdu.get16(42));
        let of_one = session.logout_response(0, 1, 7);
        assert_eq!(times(&of_one), (0, wait, retain), "{said:?}: the second connection");
        while session.turn(1, PATIENCE) {}
        assert!(session.conns[1].over.is_some());
        let of_all = session.logout_response(0, 0, 0);
        assert_eq!(times(&of_all), (0, wait, retain), "{said:?}: the session");
        while session.turn(0, PATIENCE) {}
        assert!(session.conns[0].over.is_some());
    }
    // Out of the range nothing is agreed, and the defaults hold.
    let options = Options::new(IQN, 1);
    let beyond = [pair("DefaultTime2Wait", "3601"), pair("DefaultTime2Retain", "70000")];
    let pairs = [options.names(), beyond.to_vec()].concat();
    let mut login = Login::new(portal(&server), &options);
    let (_, found) = login.ask((OPERATIONAL, FULL, true), &pairs).unwrap();
    assert_eq!((&found["DefaultTime2Wait"][..], &found["DefaultTime2Retain"][..]), ("Reject", "Reject"));
    let params = login.begin(&options, &found);
    let mut session = Session::begin(login, params, &options);
    let response = session.logout_response(0, 0, 0);
    assert_eq!((response.bhs[2], response.get16(40), response.get16(42)), (0, 2, 20));
    server.stop();
}
