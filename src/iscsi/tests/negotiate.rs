//! Each key by its rule, and values that are none.

use super::super::keys::{BadNegotiation, Negotiation, Place};
use super::*;

const LEADING: Place = Place { kind: SessionKind::Normal, leading: true };

/// The answer to one pair, and what holds then.
fn take(offer: Offer, place: Place, key: &str, value: &str) -> (Vec<String>, Params) {
    let mut negotiation = Negotiation::new(offer);
    let mut out = Vec::new();
    negotiation.take(place, key, value, &mut out).unwrap();
    (pairs_of(&out), negotiation.params())
}

fn answer(key: &str, value: &str) -> String {
    let (answers, _) = take(Offer::default(), LEADING, key, value);
    answers.join(" ")
}

#[test]
fn every_key_by_its_rule() {
    for (key, value, expected) in [
        ("HeaderDigest", "None", "None"),
        ("HeaderDigest", "CRC32C", "CRC32C"),
        ("HeaderDigest", "None,CRC32C", "None"),
        ("HeaderDigest", "CRC32C,None", "CRC32C"),
        ("HeaderDigest", "X-other,CRC32C", "CRC32C"),
        ("HeaderDigest", "crc32c", "Reject"),
        ("HeaderDigest", "", "Reject"),
        ("DataDigest", "CRC32C,None", "CRC32C"),
        ("DataDigest", "MD5", "Reject"),
        ("MaxConnections", "1", "1"),
        ("MaxConnections", "65535", "4"),
        ("MaxConnections", "0", "Reject"),
        ("MaxConnections", "65536", "Reject"),
        ("InitialR2T", "Yes", "Yes"),
        ("InitialR2T", "No", "No"),
        ("InitialR2T", "Maybe", "Reject"),
        ("ImmediateData", "Yes", "Yes"),
        ("ImmediateData", "No", "No"),
        ("ImmediateData", "", "Reject"),
        ("MaxBurstLength", "512", "512"),
        ("MaxBurstLength", "262144", "262144"),
        ("MaxBurstLength", "0x40000", "262144"),
        ("MaxBurstLength", "16777215", "1048576"),
        ("MaxBurstLength", "511", "Reject"),
        ("MaxBurstLength", "16777216", "Reject"),
        ("MaxBurstLength", "-1", "Reject"),
        ("FirstBurstLength", "512", "512"),
        ("FirstBurstLength", "262144", "65536"),
        ("FirstBurstLength", "511", "Reject"),
        ("DefaultTime2Wait", "0", "2"),
        ("DefaultTime2Wait", "3600", "3600"),
        ("DefaultTime2Wait", "3601", "Reject"),
        ("DefaultTime2Retain", "20", "0"),
        ("DefaultTime2Retain", "3601", "Reject"),
        ("MaxOutstandingR2T", "1", "1"),
        ("MaxOutstandingR2T", "65535", "4"),
        ("MaxOutstandingR2T", "0", "Reject"),
        ("DataPDUInOrder", "Yes", "Yes"),
        ("DataPDUInOrder", "No", "Yes"),
        ("DataPDUInOrder", "no", "Reject"),
        ("DataSequenceInOrder", "No", "Yes"),
        ("ErrorRecoveryLevel", "0", "0"),
        ("ErrorRecoveryLevel", "2", "0"),
        ("ErrorRecoveryLevel", "3", "Reject"),
        ("TaskReporting", "RFC3720", "RFC3720"),
        ("TaskReporting", "FastAbort,ResponseFence,RFC3720", "RFC3720"),
        ("TaskReporting", "FastAbort", "Reject"),
        ("iSCSIProtocolLevel", "1", "1"),
        ("iSCSIProtocolLevel", "31", "2"),
        ("iSCSIProtocolLevel", "32", "Reject"),
        ("IFMarker", "Yes", "No"),
        ("OFMarker", "No", "No"),
        ("OFMarker", "2", "Reject"),
        ("IFMarkInt", "2048~8192", "Reject"),
        ("OFMarkInt", "2048", "Reject"),
        ("RDMAExtensions", "Yes", "NotUnderstood"),
        ("X-com.example.thing", "1", "NotUnderstood"),
        ("headerdigest", "None", "NotUnderstood"),
    ] {
        assert_eq!(answer(key, value), format!("{key}={expected}"), "{value}");
    }
    assert_eq!(answer("MaxRecvDataSegmentLength", "512"), "");
    assert_eq!(answer("MaxRecvDataSegmentLength", "16777215"), "");
    assert_eq!(answer("MaxRecvDataSegmentLength", "511"), "MaxRecvDataSegmentLength=Reject");
    assert_eq!(answer("MaxRecvDataSegmentLength", "16777216"), "MaxRecvDataSegmentLength=Reject");
    // What refuses an offer that was not made wants no answer.
    assert_eq!(answer("X-thing", "NotUnderstood"), "");
    assert_eq!(answer("MaxBurstLength", &"9".repeat(256)), "MaxBurstLength=Reject");
}

#[test]
fn what_is_answered_holds() {
    let (_, params) = take(Offer::default(), LEADING, "HeaderDigest", "CRC32C");
    assert!(params.header_digest && !params.data_digest);
    let (_, params) = take(Offer::default(), LEADING, "MaxBurstLength", "4096");
    assert_eq!(params.max_burst, 4096);
    let (_, params) = take(Offer::default(), LEADING, "MaxBurstLength", "4");
    assert_eq!(params.max_burst, 262_144, "a rejected value leaves the default");
    let (_, params) = take(Offer::default(), LEADING, "MaxRecvDataSegmentLength", "262144");
    assert_eq!((params.initiator_max_data, params.target_max_data), (262_144, 8192));
    let own = Offer { initial_r2t: true, immediate_data: false, ..Offer::default() };
    for (value, initial_r2t, immediate) in [("Yes", true, false), ("No", true, false)] {
        assert_eq!(take(own, LEADING, "InitialR2T", value).1.initial_r2t, initial_r2t);
        assert_eq!(take(own, LEADING, "ImmediateData", value).1.immediate_data, immediate);
    }
    let (_, params) = take(Offer::default(), LEADING, "iSCSIProtocolLevel", "5");
    assert_eq!(params.protocol_level, 2);
}

#[test]
fn digests_by_policy() {
    for (policy, list, expected) in [
        (DigestPolicy::Off, "CRC32C,None", "None"),
        (DigestPolicy::Off, "CRC32C", "Reject"),
        (DigestPolicy::Require, "None,CRC32C", "CRC32C"),
        (DigestPolicy::Require, "None", "Reject"),
        (DigestPolicy::Offer, "None", "None"),
    ] {
        let offer = Offer { header_digest: policy, data_digest: policy, ..Offer::default() };
        for key in ["HeaderDigest", "DataDigest"] {
            assert_eq!(take(offer, LEADING, key, list).0, [format!("{key}={expected}")]);
        }
    }
}

#[test]
fn a_key_comes_once() {
    let mut negotiation = Negotiation::new(Offer::default());
    let mut out = Vec::new();
    negotiation.take(LEADING, "InitialR2T", "No", &mut out).unwrap();
    assert_eq!(negotiation.take(LEADING, "InitialR2T", "No", &mut out), Err(BadNegotiation::Twice));
}

#[test]
fn keys_of_tasks_and_of_sessions_in_their_places() {
    let discovery = Place { kind: SessionKind::Discovery, leading: true };
    let second = Place { kind: SessionKind::Normal, leading: false };
    for key in
        ["MaxConnections", "InitialR2T", "ImmediateData", "MaxBurstLength", "FirstBurstLength", "MaxOutstandingR2T"]
    {
        assert_eq!(take(Offer::default(), discovery, key, "1").0, [format!("{key}=Irrelevant")]);
        assert_eq!(take(Offer::default(), second, key, "1").0, [format!("{key}=Irrelevant")]);
    }
    for key in ["DataPDUInOrder", "DataSequenceInOrder", "TaskReporting", "iSCSIProtocolLevel"] {
        assert_eq!(take(Offer::default(), discovery, key, "Yes").0, [format!("{key}=Irrelevant")]);
    }
    assert_eq!(take(Offer::default(), discovery, "DefaultTime2Wait", "5").0, ["DefaultTime2Wait=5"]);
    assert_eq!(take(Offer::default(), second, "DefaultTime2Wait", "5").0, ["DefaultTime2Wait=Irrelevant"]);
    for place in [discovery, second] {
        assert_eq!(take(Offer::default(), place, "HeaderDigest", "CRC32C").0, ["HeaderDigest=CRC32C"]);
    }
}

#[test]
fn what_was_not_mentioned_is_asked_for_if_it_must_be() {
    let offer = Offer {
        header_digest: DigestPolicy::Require,
        data_digest: DigestPolicy::Require,
        immediate_data: false,
        first_burst: 8192,
        ..Offer::default()
    };
    let mut negotiation = Negotiation::new(offer);
    let mut out = Vec::new();
    assert_eq!(negotiation.complete(LEADING, &mut out), Ok(false));
    assert_eq!(
        pairs_of(&out),
        ["HeaderDigest=CRC32C", "DataDigest=CRC32C", "ImmediateData=No", "FirstBurstLength=8192"]
    );
    out.clear();
    assert_eq!(negotiation.complete(LEADING, &mut out), Ok(false), "it is asked once");
    for (key, value) in
        [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C"), ("ImmediateData", "No"), ("FirstBurstLength", "4096")]
    {
        negotiation.take(LEADING, key, value, &mut out).unwrap();
    }
    assert_eq!(negotiation.complete(LEADING, &mut out), Ok(true));
    assert!(out.is_empty());
    let params = negotiation.params();
    assert!(params.header_digest && params.data_digest && !params.immediate_data);
    assert_eq!(params.first_burst, 4096);
}

#[test]
fn who_refuses_what_is_required_is_refused() {
    let offer = Offer { header_digest: DigestPolicy::Require, ..Offer::default() };
    let mut out = Vec::new();
    let mut negotiation = Negotiation::new(offer);
    negotiation.take(LEADING, "HeaderDigest", "None", &mut out).unwrap();
    assert_eq!(negotiation.complete(LEADING, &mut out), Err(BadNegotiation::Refused));
    for value in ["None", "Reject", "NotUnderstood", "Irrelevant"] {
        let mut negotiation = Negotiation::new(offer);
        assert_eq!(negotiation.complete(LEADING, &mut out), Ok(false));
        assert_eq!(negotiation.take(LEADING, "HeaderDigest", value, &mut out), Err(BadNegotiation::Refused));
    }
}

#[test]
fn a_second_connection_has_the_parameters_of_its_session() {
    let mut negotiation = Negotiation::new(Offer::default());
    let mut out = Vec::new();
    let second = Place { kind: SessionKind::Normal, leading: false };
    negotiation.take(second, "DataDigest", "CRC32C", &mut out).unwrap();
    negotiation.take(second, "MaxRecvDataSegmentLength", "4096", &mut out).unwrap();
    let of_session = Params { max_burst: 999, header_digest: true, initiator_max_data: 1, ..Params::default() };
    negotiation.adopt(&of_session);
    let params = negotiation.params();
    assert!(params.data_digest && !params.header_digest);
    assert_eq!((params.max_burst, params.initiator_max_data), (999, 4096));
}
