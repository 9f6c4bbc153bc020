use super::super::Stuck;
use super::*;

#[test]
fn time_passes_only_by_waiting_and_never_wakes_early() {
    let mut two = Two::new(1);
    let (here, world) = (two.here.clone(), two.sim.world().clone());
    two.sim
        .run_until(&two.here.clone(), async move {
            for _ in 0..100 {
                here.yield_now().await;
            }
            let before = world.now();
            for _ in 0..100 {
                here.yield_now().await;
            }
            assert_eq!(world.now(), before, "nobody waited");
            for ns in [1, 1_000, 5_000_000, 3_000_000_000, 30_000_000_000] {
                let before = world.now();
                here.sleep(ns).await;
                let passed = world.now() - before;
                assert!((ns..ns + 3_000_000).contains(&passed), "{passed} instead of {ns} ns");
            }
        })
        .unwrap();
}

#[test]
fn messages_wake_reactors_that_sleep() {
    for seed in 0..50 {
        let mut sim = Simulation::new(seed);
        let machine = sim.machine(3);
        let reactor = sim.reactor(machine, 0);
        let here = reactor.clone();
        let asked = sim
            .run_until(&reactor, async move {
                let mut asked = 0;
                for round in 0..30u16 {
                    asked += here.call(round % 3, move |there| u64::from(there.id() == round % 3)).await;
                    here.sleep(u64::from(round) * 100_000).await;
                }
                asked
            })
            .unwrap_or_else(|stuck| panic!("{stuck}"));
        assert_eq!(asked, 30);
        let asleep = sim.reactor(machine, 1).stats();
        assert!(asleep.ring.completed > 0, "seed {seed}: the doorbell of a reactor that slept was never needed");
        drop(reactor);
        assert_eq!(sim.finish(), 0);
    }
}

#[test]
fn reactors_that_run_in_circles_are_noticed() {
    let mut two = Two::new(2);
    let here = two.here.clone();
    let forever = Cell::new(true);
    let stuck = two.sim.run_until(&two.here.clone(), async move {
        while forever.get() {
            here.yield_now().await;
        }
    });
    assert!(matches!(stuck, Err(Stuck::Livelock(_))), "{stuck:?}");
}

#[test]
fn what_takes_an_hour_is_noticed() {
    let mut two = Two::new(3);
    let here = two.here.clone();
    let ticking = two.here.clone();
    two.here.spawn("ticker", async move {
        loop {
            ticking.sleep(10_000_000_000).await;
        }
    });
    let stuck = two.sim.run_until(&two.here.clone(), async move { here.sleep(4_000_000_000_000).await });
    assert!(matches!(stuck, Err(Stuck::Timeout(_))), "{stuck:?}");
}

#[test]
fn a_reactor_that_stops_is_shut_down() {
    let mut two = Two::new(4);
    two.here.stop();
    two.sim.run_for(1_000_000).unwrap();
    assert_eq!(two.here.tasks_alive(), 0);
    let near = two.sim.machine(1);
    assert_eq!(two.sim.reactor(near, 0).id(), 0);
    drop(two.here);
    drop(two.there);
    assert_eq!(two.sim.finish(), 0);
}
