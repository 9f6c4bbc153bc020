//! Authentication: CHAP one way and mutual, with both algorithms and with one, for targets and for discovery; who is refused, and how slowly.

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

/// The files that the configurations here name.
fn write_secrets(place: &Place) {
    for (name, secret) in [("secret", SECRET), ("mutual", MUTUAL)] {
        std::fs::write(place.path(name), secret).unwrap();
        std::fs::set_permissions(place.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// A target that asks for CHAP of one user, and gives its own proof to who asks for it.
fn serve(place: &Place) -> Server {
    write_secrets(place);
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
    // Guesses at the same time, by connections of their own, come one after the other.
    const GUESSES: u32 = 4;
    let start = now();
    let guesses: Vec<_> = (0..GUESSES)
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
    let took = now() - start;
    assert!(took >= SLOW * GUESSES, "{GUESSES} guesses in {took:?}");
    // Who knows the secret waits for its turn too, and comes in.
    login(&server, Some(chap("7", true))).unwrap().end();
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

/// What the target chooses of a list of algorithms, or how it refuses.
fn chosen(server: &Server, options: &Options, algorithms: &str) -> Result<String, Refusal> {
    let mut login = Login::new(portal(server), options);
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let first = [options.names(), vec![pair("AuthMethod", "CHAP")]].concat();
    login.ask((SECURITY, OPERATIONAL, false), &first)?;
    let (_, answer) = login.ask((SECURITY, OPERATIONAL, false), &[pair("CHAP_A", algorithms)])?;
    // The challenge is as long as the hash.
    let len = binary(&answer["CHAP_C"]).len();
    assert_eq!(len, if answer["CHAP_A"] == "5" { 16 } else { 32 }, "{answer:?}");
    Ok(answer["CHAP_A"].clone())
}

#[test]
fn a_target_with_one_algorithm_takes_no_other() {
    let place = Place::new();
    write_secrets(&place);
    let target = |algorithm: &str| {
        format!(
            r#"luns = [{{ bdev = "ram0" }}]
            chap = {{ user = "alice", secret_file = "secret", algorithms = ["{algorithm}"] }}"#
        )
    };
    let other = format!("{IQN}b");
    let both = format!("{}\n[[iscsi.target]]\niqn = \"{other}\"\n{}", target("sha256"), target("md5"));
    let server = place.serve(&config_with(r#"listen = ["127.0.0.1:0"]"#, &both.replacen("ram0", "ram1", 1)));
    for (iqn, own, not) in [(IQN, "7", "5"), (&other, "5", "7")] {
        let options = Options::new(iqn, 1);
        // Wherever it stands in the list; with one that nobody knows.
        for list in [own.to_owned(), format!("{own},{not}"), format!("{not},{own}"), format!("6,99,{not},{own}")] {
            assert_eq!(chosen(&server, &options, &list).as_deref(), Ok(own), "{iqn}: {list}");
        }
        for list in [not.to_owned(), format!("{not},6"), "8".to_owned(), format!("{own}{not}"), String::new()] {
            assert_eq!(chosen(&server, &options, &list), Err(AUTHENTICATION_FAILURE), "{iqn}: {list}");
        }
        // The whole of it.
        let with = |algorithms| Options { chap: Some(chap(algorithms, false)), ..options.clone() };
        let (lists, refused) = if own == "7" { (["7", "5,7"], "5") } else { (["5", "7,5"], "7") };
        for list in lists {
            let mut session = Session::open(portal(&server), &with(list));
            session.settle(0);
            session.end();
        }
        assert_eq!(Session::login(portal(&server), &with(refused)).err(), Some(AUTHENTICATION_FAILURE), "{iqn}");
    }
    server.stop();
}

/// Discovery has a secret of its own: it opens no target, and that of a target opens no discovery.
#[test]
fn discovery_may_need_a_proof_that_targets_do_not() {
    let place = Place::new();
    write_secrets(&place);
    let guarded = format!("{IQN}b");
    let portals = r#"listen = ["127.0.0.1:0"]
        discovery_chap = { user = "alice", secret_file = "secret" }"#;
    let targets = format!(
        r#"luns = [{{ bdev = "ram0" }}]
        [[iscsi.target]]
        iqn = "{guarded}"
        luns = [{{ bdev = "ram1" }}]
        chap = {{ user = "bob", secret_file = "mutual" }}"#
    );
    let server = place.serve(&config_with(portals, &targets));
    let of_bob = Chap { algorithms: "7,5", user: "bob", secret: MUTUAL, mutual: None };
    let open = |target: Option<&str>, chap: Option<Chap>| {
        let target = target.map(str::to_owned);
        Session::login(portal(&server), &Options { target, chap, ..Options::new(IQN, 1) })
    };
    for algorithms in ["5", "7"] {
        let mut session = open(None, Some(chap(algorithms, false))).unwrap();
        let found = session.send_targets("All");
        let names: Vec<_> = found.iter().filter(|(key, _)| key == "TargetName").map(|(_, name)| &name[..]).collect();
        assert_eq!(names, [IQN, &guarded]);
        session.end();
    }
    let wrong = [
        ("no proof", None, Duration::ZERO),
        ("a wrong secret", Some(Chap { secret: b"a long wrong secret!", ..chap("7", false) }), SLOW),
        ("a wrong user", Some(Chap { user: "bob", ..chap("5", false) }), SLOW),
        ("the secret of a target", Some(of_bob.clone()), SLOW),
    ];
    for (name, chap, least) in wrong {
        let start = now();
        assert_eq!(open(None, chap).err(), Some(AUTHENTICATION_FAILURE), "{name}");
        assert!(now() - start >= least, "{name}: refused after {:?}", now() - start);
    }
    // Nor past the security stage.
    let options = Options { target: None, ..Options::new(IQN, 1) };
    let mut straight = Login::new(portal(&server), &options);
    assert_eq!(straight.ask((OPERATIONAL, FULL, true), &options.names()).err(), Some(AUTHENTICATION_FAILURE));
    // The target without a secret is as it was; the other one wants its own.
    let mut session = open(Some(IQN), None).unwrap();
    session.settle(0);
    let own = session.send_targets("");
    assert!(own.contains(&("TargetName".to_owned(), IQN.to_owned())), "{own:?}");
    session.end();
    assert_eq!(open(Some(&guarded), Some(chap("7", false))).err(), Some(AUTHENTICATION_FAILURE));
    assert_eq!(open(Some(&guarded), None).err(), Some(AUTHENTICATION_FAILURE));
    let mut session = open(Some(&guarded), Some(of_bob)).unwrap();
    session.settle(0);
    session.end();
    server.stop();
}
