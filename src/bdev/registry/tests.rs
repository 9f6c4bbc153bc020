use super::*;
use crate::bdev::device::null::{self, CompleteIn, Null};
use crate::bdev::device::testing::two_reactors;
use crate::bdev::layer::inject::{self, Action, Inject, Rule, When};
use crate::reactor::io::{IoOp, IoStatus};
use std::sync::atomic::{AtomicU32, Ordering};

const LIMIT: Duration = Duration::from_secs(20);

fn null(name: &str) -> Arc<dyn BlockDevice> {
    Arc::new(Null::new(null::Options {
        name: name.to_owned(),
        uuid: [0; 16],
        size: 1 << 20,
        block_size: 512,
        physical_block_size: 512,
        complete: CompleteIn::Poll,
    }))
}

fn layer(registry: &Registry, name: &str, base: &str, rules: Vec<Rule>) -> Result<inject::Control, RegistryError> {
    let claim = registry.claim(base, Mode::Exclusive, &format!("volume \"{name}\""))?;
    let options = inject::Options { name: name.to_owned(), uuid: [1; 16], base: claim.device().clone(), rules };
    let device = Inject::new(options).unwrap();
    let control = device.control();
    registry.add(Arc::new(device), vec![claim])?;
    Ok(control)
}

#[test]
fn claims_go_together_or_name_who_is_in_the_way() {
    let reactors = two_reactors();
    let registry = Registry::new(reactors.remotes().to_vec());
    registry.add(null("a"), Vec::new()).unwrap();
    let (first, second) =
        (registry.claim("a", Mode::Shared, "subsystem one"), registry.claim("a", Mode::Shared, "LUN 3"));
    let text = registry.claim("a", Mode::Exclusive, "volume \"m\"").unwrap_err().to_string();
    assert_eq!(text, "volume \"a\" is in use: subsystem one (shared), LUN 3 (shared)");
    assert!(matches!(registry.claim("a", Mode::ReadOnly, "clone"), Err(RegistryError::Held { .. })));
    drop((first, second));
    let readers =
        (registry.claim("a", Mode::ReadOnly, "clone").unwrap(), registry.claim("a", Mode::ReadOnly, "other").unwrap());
    assert!(registry.claim("a", Mode::Shared, "LUN 3").is_err());
    drop(readers);
    let alone = registry.claim("a", Mode::Exclusive, "volume \"m\"").unwrap();
    let text = registry.claim("a", Mode::Exclusive, "volume \"n\"").unwrap_err().to_string();
    assert_eq!(text, "volume \"a\" is in use: volume \"m\" (exclusive)");
    let text = registry.remove("a", LIMIT).unwrap_err().to_string();
    assert_eq!(text, "volume \"a\" is in use: volume \"m\" (exclusive)");
    assert!(!alone.device().common().is_closing(), "refused, nothing has changed");
    drop(alone);
    registry.remove("a", LIMIT).unwrap();
    assert!(matches!(registry.get("a"), Err(RegistryError::Unknown(_))));
    reactors.stop();
}

#[test]
fn stacks_are_listed_grow_from_the_top_and_go_from_the_top() {
    let reactors = two_reactors();
    let registry = Registry::new(reactors.remotes().to_vec());
    let events = Arc::new(crossbeam_queue::SegQueue::new());
    let told = events.clone();
    let listener = registry.listen(move |event| told.push(event.clone()));
    registry.add(null("base"), Vec::new()).unwrap();
    assert!(matches!(registry.add(null("base"), Vec::new()), Err(RegistryError::Exists(_))));
    layer(&registry, "top", "base", Vec::new()).unwrap();
    let lines: Vec<String> = registry
        .list()
        .into_iter()
        .map(|l| format!("{} {} {} on {:?} for {:?}", l.name, l.driver, l.layers, l.bases, l.holders))
        .collect();
    assert_eq!(
        lines,
        [r#"base null 0 on [] for [("volume \"top\"", Exclusive)]"#, r#"top inject 1 on ["base"] for []"#,]
    );

    let text = registry.resize("base", 2 << 20).unwrap_err().to_string();
    assert_eq!(text, "volume \"base\" is in use: volume \"top\" (exclusive)");
    assert_eq!(registry.resize("top", 2 << 20).unwrap(), 2 << 20);
    assert_eq!(registry.get("base").unwrap().common().size(), 2 << 20);

    assert!(matches!(registry.remove("base", LIMIT), Err(RegistryError::Held { .. })));
    registry.remove("top", LIMIT).unwrap();
    registry.remove("base", LIMIT).unwrap();
    drop(listener);
    registry.add(null("unheard"), Vec::new()).unwrap();
    let heard: Vec<Event> = std::iter::from_fn(|| events.pop()).collect();
    let name = |name: &str| name.to_owned();
    assert_eq!(
        heard,
        [
            Event::Added(name("base")),
            Event::Added(name("top")),
            Event::Resized(name("top"), 2 << 20),
            Event::Closing(name("top")),
            Event::Removed(name("top")),
            Event::Closing(name("base")),
            Event::Removed(name("base")),
        ]
    );
    reactors.stop();
}

#[test]
fn a_stack_has_a_depth_and_a_home_that_exists() {
    let reactors = two_reactors();
    let registry = Registry::new(reactors.remotes().to_vec());
    registry.add(null("0"), Vec::new()).unwrap();
    for depth in 1..=STACK_LAYERS_MAX {
        layer(&registry, &depth.to_string(), &(depth - 1).to_string(), Vec::new()).unwrap();
    }
    let (top, above) = (STACK_LAYERS_MAX.to_string(), (STACK_LAYERS_MAX + 1).to_string());
    let error = layer(&registry, &above, &top, Vec::new()).map(|_| ()).unwrap_err();
    assert!(matches!(error, RegistryError::TooDeep { layers, .. } if layers == STACK_LAYERS_MAX + 1), "{error}");
    // The deepest stack works, on both reactors.
    for remote in reactors.remotes() {
        let device = registry.get(&top).unwrap();
        let (sender, status) = mpsc::channel();
        remote.send(Box::new(move |reactor| {
            let handle = Handle::open(reactor, &device).unwrap();
            reactor.spawn("test", async move {
                let mut io = handle.reactor().create_io().unwrap();
                io.prepare(IoOp::Read, 0, 512);
                let io = handle.execute(io).await;
                sender.send(io.status).unwrap();
                handle.reactor().retire_io(io);
            });
        }));
        assert_eq!(status.recv(), Ok(IoStatus::Success));
    }
    for depth in (0..=STACK_LAYERS_MAX).rev() {
        registry.remove(&depth.to_string(), LIMIT).unwrap();
    }
    let elsewhere = crate::bdev::device::malloc::Malloc::new(crate::bdev::device::malloc::Options {
        name: "far".to_owned(),
        uuid: [0; 16],
        size: 1 << 20,
        block_size: 512,
        physical_block_size: 512,
        hugepages: false,
        home: 9,
    });
    let error = registry.add(Arc::new(elsewhere.unwrap()), Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "volume \"far\" has its home on reactor 9, and there are 2");
    reactors.stop();
}

#[test]
fn closing_ends_what_is_held_and_removal_waits_for_the_last_handle() {
    let reactors = two_reactors();
    let registry = Registry::new(reactors.remotes().to_vec());
    registry.add(null("base"), Vec::new()).unwrap();
    let hold = Rule { op: Some(IoOp::Write), when: When::From(1), count: None, action: Action::Hold };
    let control = layer(&registry, "top", "base", vec![hold]).unwrap();
    let claim = registry.claim("top", Mode::Shared, "a door").unwrap();
    let (sender, statuses) = mpsc::channel();
    let (release, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    for remote in reactors.remotes() {
        let (device, sender, release, gate) = (claim.device().clone(), sender.clone(), release.clone(), gate.clone());
        remote.send(Box::new(move |reactor| {
            let handle = Handle::open(reactor, &device).unwrap();
            reactor.spawn("door", async move {
                let mut io = handle.reactor().create_io().unwrap();
                io.prepare(IoOp::Write, 0, 512);
                gate.fetch_add(1, Ordering::Relaxed);
                let io = handle.execute(io).await;
                sender.send(io.status).unwrap();
                handle.reactor().retire_io(io);
                // The door keeps its handle for a while.
                while release.load(Ordering::Relaxed) == 0 {
                    handle.reactor().sleep(1_000_000).await;
                }
            });
        }));
    }
    while control.held() < 2 {
        std::thread::yield_now();
    }
    registry.close("top", LIMIT).unwrap();
    assert_eq!([statuses.recv().unwrap(), statuses.recv().unwrap()], [IoStatus::Gone; 2]);
    assert!(matches!(registry.claim("top", Mode::Shared, "late"), Err(RegistryError::Closing(_))));
    assert!(matches!(registry.resize("top", 4 << 20), Err(RegistryError::Closing(_))));
    assert!(matches!(registry.remove("top", LIMIT), Err(RegistryError::Held { .. })), "the door has its claim");
    drop(claim);
    let error = registry.remove("top", Duration::from_millis(100)).unwrap_err();
    assert!(matches!(&error, RegistryError::StillOpen { reactors, .. } if reactors.len() == 2), "{error}");
    assert!(matches!(registry.remove("base", LIMIT), Err(RegistryError::Held { .. })), "still below the other");
    release.store(1, Ordering::Relaxed);
    registry.remove("top", LIMIT).unwrap();
    registry.remove("base", LIMIT).unwrap();
    assert!(registry.list().is_empty());
    let left = reactors.remotes()[1].ask(|reactor| Handle::all(reactor).len());
    assert_eq!(left, Some(0), "no channel is left");
    reactors.stop();
}

#[test]
fn an_order_has_bases_first_or_a_reason() {
    let on = |bases: &'static [&'static str]| bases;
    let devices = [("m", on(&["a", "b"])), ("a", on(&[])), ("thin", on(&["m"])), ("b", on(&[]))];
    assert_eq!(order(&devices), Ok(vec![1, 3, 0, 2]));
    let circle = order(&[("x", on(&["a"])), ("a", on(&["b"])), ("b", on(&["c"])), ("c", on(&["a"]))]).unwrap_err();
    assert_eq!(circle.to_string(), "volumes are stacked in a circle: a is on b is on c is on a");
    assert_eq!(order(&[("a", on(&["a"]))]).unwrap_err().to_string(), "volumes are stacked in a circle: a is on a");
    assert_eq!(order(&[("a", on(&["q"]))]).unwrap_err().to_string(), "volume \"a\" is on \"q\", which does not exist");
    assert_eq!(order(&[("a", on(&[])), ("a", on(&[]))]), Err(StackError::Twice("a".to_owned())));
    let names: Vec<String> = (0..STACK_LAYERS_MAX + 2).map(|i| i.to_string()).collect();
    let bases: Vec<Vec<&str>> =
        (0..names.len()).map(|i| if i == 0 { Vec::new() } else { vec![names[i - 1].as_str()] }).collect();
    let chain: Vec<(&str, &[&str])> =
        names.iter().zip(&bases).map(|(name, bases)| (name.as_str(), &bases[..])).collect();
    assert!(matches!(order(&chain), Err(StackError::TooDeep { layers, .. }) if layers == STACK_LAYERS_MAX + 1));
    assert!(order(&chain[..chain.len() - 1]).is_ok());
}
