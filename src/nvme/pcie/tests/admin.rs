//! The admin queue: more commands than it has places, answers that come late, and its end.

use super::*;
use crate::nvme::pcie::Controller;
use crate::nvme::spec::{FeatureFields, FeatureId, FeatureSelect, QueueCounts, Sqe};

fn up(rig: &mut Rig) -> Rc<Controller<TestPort>> {
    let (home, port) = (rig.reactor(0), rig.port.clone());
    let options = ControllerOptions::new(8);
    rig.run(async move { Controller::bring_up(&home, port, options).await }).unwrap()
}

fn question() -> Sqe {
    let mut sqe = Sqe::bare(AdminOpcode::SET_FEATURES.0, 0);
    FeatureFields { fid: FeatureId::NUMBER_OF_QUEUES, select: FeatureSelect::CURRENT, save: false }.put(&mut sqe);
    sqe.cdw11.set(QueueCounts::pairs(4).to_dword());
    sqe
}

/// Asks so many questions at the same time; what became of each.
fn ask(
    rig: &Rig,
    controller: &Rc<Controller<TestPort>>,
    count: usize,
) -> Rc<RefCell<Vec<Result<(), ControllerError>>>> {
    let answers = Rc::new(RefCell::new(Vec::new()));
    for _ in 0..count {
        let (controller, answers) = (controller.clone(), answers.clone());
        rig.reactor(0).spawn("ask", async move {
            let answer = controller.ask("a question", question(), None).await.map(|_| ());
            answers.borrow_mut().push(answer);
        });
    }
    answers
}

fn down(rig: &mut Rig, controller: Rc<Controller<TestPort>>) {
    rig.run(async move { controller.stop().await.map(|_| ()) }).unwrap();
}

#[test]
fn more_commands_than_places_are_all_answered() {
    let mut rig = Rig::closed(1, |_| {}, FakeOptions { admin_ns: (MS, 20 * MS), ..FakeOptions::default() });
    let controller = up(&mut rig);
    let answers = ask(&rig, &controller, 500);
    rig.wait(2 * S);
    assert!(answers.borrow().len() == 500 && answers.borrow().iter().all(Result::is_ok));
    assert_eq!(controller.stale(), 0);
    down(&mut rig, controller);
    rig.nothing_left();
}

#[test]
fn answers_that_are_wrong_are_counted_and_end_nothing() {
    for fault in [Fault::Twice, Fault::Extra(1 << 8), Fault::Extra(0x80)] {
        let mut rig = Rig::closed(2, |_| {}, FakeOptions::default());
        let controller = up(&mut rig);
        rig.inject([Rule::nth(Point::Admin(AdminOpcode::SET_FEATURES), 1, fault)]);
        let answers = ask(&rig, &controller, 2);
        rig.wait(S);
        assert!(answers.borrow().len() == 2 && answers.borrow().iter().all(Result::is_ok), "{fault:?}");
        assert_eq!(controller.stale(), 1, "{fault:?}");
        down(&mut rig, controller);
        rig.nothing_left();
    }
}

#[test]
fn a_place_is_free_again_when_its_late_answer_comes() {
    // All places are taken by commands that were given up; they are answered after all.
    let mut rig = Rig::closed(3, |_| {}, FakeOptions::default());
    let controller = up(&mut rig);
    let late = Rule::always(Point::Admin(AdminOpcode::SET_FEATURES), Fault::Late(61 * S));
    rig.inject([Rule { count: Some(63), ..late }]);
    let given_up = ask(&rig, &controller, 63);
    rig.wait(60 * S + 10 * MS);
    assert!(
        given_up.borrow().len() == 63
            && given_up.borrow().iter().all(|one| matches!(one, Err(ControllerError::Late { .. })))
    );
    let answers = ask(&rig, &controller, 100);
    rig.wait(100 * MS);
    assert!(answers.borrow().is_empty(), "there is no place");
    rig.wait(2 * S);
    assert!(answers.borrow().len() == 100 && answers.borrow().iter().all(Result::is_ok));
    assert_eq!(controller.stale(), 0);
    down(&mut rig, controller);
    rig.nothing_left();
}

#[test]
fn its_end_ends_all_that_wait() {
    let mut rig = Rig::closed(4, |_| {}, FakeOptions::default());
    let controller = up(&mut rig);
    rig.inject([Rule::always(Point::Admin(AdminOpcode::SET_FEATURES), Fault::Hang)]);
    let answers = ask(&rig, &controller, 100);
    rig.wait(S);
    down(&mut rig, controller);
    rig.wait(MS);
    let stopped = |one: &Result<(), ControllerError>| matches!(one, Err(ControllerError::Stopped { .. }));
    assert!(answers.borrow().len() == 100 && answers.borrow().iter().all(stopped));
    drop(answers);
    rig.nothing_left();
}
