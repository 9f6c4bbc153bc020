//! Authentication: CHAP one way and mutual, with both algorithms; who is refused, and how slowly.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::super::server::{Place, Server, now};
use super::initiator::login::{AUTHENTICATION_FAILURE, FULL, NOT_ALLOWED, OPERATIONAL, Refusal, SECURITY, binary, hex};
use super::initiator::{Chap, Login, Options, Session};
use super::{IQN, config_with, portal};

const SECRET: &[u8] = b"a long enough secret";
const MUTUAL: &[u8] = b"another long secret!";
/// Between a guess and its refusal, at least.
const SLOW: Duration = Duration::from_millis(500);

/// A target that asks for CHAP of one user, and gives its own proof to who asks for it.
fn serve(place: &Place) -> Server {
    for (name, secret) in [("secret", SECRET), ("mutual", MUTUAL)] {
        std::fs::write(place.path(name), secret).unwrap();
        std::fs::set_permissions(place.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let target = r#"luns = [{ bdev = "ram0" }]
        chap = { user = "alice", secret_file = "secret", mutual_user = "bob", mutual_secret_file = "mutual" }"#;
    place.serve(&config_with(r#"listen = ["127.0.0.1:0"]"#, target))
}

fn chap(algorithms: &'static str, mutual: bool) -> Chap {
    Chap { algorithms, user: "alice", secret: SECRET, mutual: mutual.then_some(("bob", MUTUAL)) }
}

fn login(server: &Server, chap: Option<Chap>) -> Result<Session, Refusal> {
    Session::login(portal(server), &Options { chap, ..Options::new(IQN, 1) })
}

#[test]
fn both_algorithms_prove_one_side_and_both() {
    let place = Place::new();
    let server = serve(&place);
    for algorithms in ["5", "7", "7,5", "5,7", "99,5"] {
        for mutual in [false, true] {
            let mut session = login(&server, Some(chap(algorithms, mutual))).unwrap();
            session.settle(0);
            session.end();
        }
    }
    server.stop();
}

#[test]
fn who_proves_nothing_is_refused_slowly() {
    let place = Place::new();
    let server = serve(&place);
    let wrong = [
        ("no authentication", None, Duration::ZERO),
        ("a wrong secret", Some(Chap { secret: b"a long wrong secret!", ..chap("5", false) }), SLOW),
        ("a wrong secret, SHA-256", Some(Chap { secret: b"a long wrong secret!", ..chap("7", true) }), SLOW),
        ("a wrong user", Some(Chap { user: "mallory", ..chap("7", false) }), SLOW),
        ("an empty secret", Some(Chap { secret: b"", ..chap("5", false) }), SLOW),
    ];
    for (name, chap, least) in wrong {
        let start = now();
        let status = login(&server, chap).err();
        assert_eq!(status, Some(AUTHENTICATION_FAILURE), "{name}");
        let took = now() - start;
        assert!(took >= least, "{name}: refused after {took:?}");
    }
    // Guesses at the same time are no faster.
    let start = now();
    let guesses: Vec<_> = (0..8)
        .map(|_| {
            let address = portal(&server);
            let options = Options {
                chap: Some(Chap { secret: b"guessed, guessed!", ..chap("5", false) }),
                ..Options::new(IQN, 3)
            };
            std::thread::spawn(move || Session::login(address, &options).err())
        })
        .collect();
    for guess in guesses {
        assert_eq!(guess.join().unwrap(), Some(AUTHENTICATION_FAILURE));
    }
    assert!(now() - start >= SLOW);
    // The log has no secret.
    let mut server = server;
    server.program.signal("TERM");
    let (status, _) = server.program.end(super::super::server::PATIENCE);
    assert!(status.success());
    let log = server.program.err.all().join("\n");
    assert!(!log.contains(std::str::from_utf8(SECRET).unwrap()) && !log.contains("another long secret"), "{log}");
}

/// What the target challenges with must not be given back to it as our challenge: it would prove our own answer
/// (RFC 7143 §9.2.1).
#[test]
fn a_challenge_that_comes_back_is_refused() {
    let place = Place::new();
    let server = serve(&place);
    let options = Options::new(IQN, 1);
    let mut login = Login::new(portal(&server), &options);
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let first = [options.names(), vec![pair("AuthMethod", "CHAP")]].concat();
    login.ask((SECURITY, OPERATIONAL, false), &first).unwrap();
    let (_, answer) = login.ask((SECURITY, OPERATIONAL, false), &[pair("CHAP_A", "5")]).unwrap();
    let challenge = binary(&answer["CHAP_C"]);
    let pairs = [
        pair("CHAP_N", "alice"),
        pair("CHAP_R", &hex(&[0; 16])),
        pair("CHAP_I", &answer["CHAP_I"]),
        pair("CHAP_C", &hex(&challenge)),
    ];
    let status = login.ask((SECURITY, OPERATIONAL, true), &pairs).err();
    assert_eq!(status, Some(AUTHENTICATION_FAILURE));
    server.stop();
}

#[test]
fn nobody_gets_past_the_security_stage() {
    let place = Place::new();
    let server = serve(&place);
    let options = Options::new(IQN, 1);
    // Straight to the operational stage, or out of the middle of CHAP.
    let mut straight = Login::new(portal(&server), &options);
    let status = straight.ask((OPERATIONAL, FULL, true), &options.names()).err();
    assert_eq!(status, Some(AUTHENTICATION_FAILURE));
    let mut middle = Login::new(portal(&server), &options);
    let pairs = [options.names(), vec![("AuthMethod".to_owned(), "CHAP".to_owned())]].concat();
    middle.ask((SECURITY, FULL, false), &pairs).unwrap();
    let went_on = middle.ask((SECURITY, FULL, true), &[("CHAP_A".to_owned(), "5".to_owned())]);
    assert!(went_on.is_err() || went_on.is_ok_and(|(answer, _)| !answer.transit));
    server.stop();
}

#[test]
fn only_those_on_the_list_come_in() {
    let allowed = Options::new(IQN, 9);
    let target = format!("luns = [{{ bdev = \"ram0\" }}]\ninitiators = [\"{}\"]", allowed.initiator);
    let server = Place::new().serve(&config_with(r#"listen = ["127.0.0.1:0"]"#, &target));
    Session::open(portal(&server), &allowed).end();
    let status = Session::login(portal(&server), &Options::new(IQN, 8)).err();
    assert_eq!(status, Some(NOT_ALLOWED));
    // Nor are they told that the target is there.
    for (options, count) in [(allowed, 1), (Options::new(IQN, 8), 0)] {
        let mut session = Session::open(portal(&server), &Options { target: None, ..options });
        let found = session.send_targets("All").into_iter().filter(|(key, _)| key == "TargetName").count();
        assert_eq!(found, count);
        session.end();
    }
    server.stop();
}
