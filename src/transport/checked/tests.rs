//! Frames that were changed, lost, doubled, swapped or cut on their way.

use super::*;
use crate::transport::local::LocalLink;

/// Room for all that a test sends.
const ROOM: usize = 1 << 20;

fn copy(into: &mut [u8]) -> Landing {
    Landing::Copy { into: into.as_mut_ptr() }
}

/// What a link sends for these pieces, each in a frame of its own.
fn on_the_way(pieces: &[&[u8]]) -> Vec<u8> {
    let (below, mut there) = LocalLink::pair(ROOM);
    let mut link = CheckedLink::new(below, "rank 1".to_owned());
    let mut bytes = vec![0; ROOM];
    // SAFETY: pieces and bytes outlive the links.
    unsafe {
        there.post_recv(copy(&mut bytes), ROOM);
        for piece in pieces {
            link.post_send(piece.as_ptr(), piece.len());
            while link.progress().unwrap() {}
        }
    }
    while there.progress().unwrap() {}
    bytes.truncate(there.landed() as usize);
    bytes
}

/// What a link makes of these bytes that came for it: what landed, and its error if there is one.
fn landed(bytes: &[u8], len: usize) -> (Vec<u8>, Option<Error>) {
    let (mut there, below) = LocalLink::pair(ROOM);
    let mut link = CheckedLink::new(below, "rank 0 (10.0.0.1:5000)".to_owned());
    let mut into = vec![0; len];
    // SAFETY: both vectors outlive the links.
    unsafe {
        there.post_send(bytes.as_ptr(), bytes.len());
        link.post_recv(copy(&mut into), len);
    }
    while there.progress().unwrap() {}
    let error = loop {
        match link.progress() {
            Ok(true) => {}
            Ok(false) => break None,
            Err(e) => break Some(e),
        }
    };
    into.truncate(link.landed() as usize);
    (into, error)
}

#[test]
fn a_frame_in_which_any_bit_is_another_never_lands() {
    let data: Vec<u8> = (0..40).collect();
    let sent = on_the_way(&[&data]);
    assert_eq!(sent.len(), HEADER_BYTES + data.len());
    assert_eq!(landed(&sent, 40), (data, None));
    for bit in 0..sent.len() * 8 {
        let mut changed = sent.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let (bytes, error) = landed(&changed, 40);
        let error = error.unwrap();
        assert_eq!((bytes.len(), error.status), (0, Status::System), "bit {bit}: {error}");
        assert!(error.message.contains("rank 0 (10.0.0.1:5000)"), "{error}");
    }
}

#[test]
fn frames_land_once_and_in_order() {
    let (one, two, three) = ([1u8; 50], [2u8; 50], [3u8; 50]);
    let sent = on_the_way(&[&one, &two, &three]);
    let frame = HEADER_BYTES + 50;
    assert_eq!(sent.len(), 3 * frame);
    let part = |at: usize| &sent[at * frame..(at + 1) * frame];
    for (what, order) in
        [("lost", &[0, 2][..]), ("doubled", &[0, 0, 1, 2]), ("swapped", &[0, 2, 1])]
    {
        let bytes: Vec<u8> = order.iter().flat_map(|at| part(*at)).copied().collect();
        let (bytes, error) = landed(&bytes, 150);
        let error = error.unwrap();
        assert_eq!((bytes, error.status), (one.to_vec(), Status::System), "{what}");
        assert!(error.message.contains("at byte 50 of this connection"), "{what}: {error}");
    }
}

#[test]
fn a_frame_that_is_not_whole_does_not_land() {
    let data = [7u8; 100];
    let sent = on_the_way(&[&data]);
    for len in [0, 5, HEADER_BYTES, HEADER_BYTES + 1, sent.len() - 1] {
        assert_eq!(landed(&sent[..len], 100), (Vec::new(), None), "{len} bytes");
    }
}

#[test]
fn where_data_is_wrong_is_told() {
    let data = vec![9u8; LARGEST + 1000];
    let mut sent = on_the_way(&[&data]);
    *sent.last_mut().unwrap() ^= 0x80;
    let (bytes, error) = landed(&sent, data.len());
    assert_eq!(bytes.len(), LARGEST);
    let error = error.unwrap();
    assert!(error.message.contains("bytes 65536 to 66536 of this connection"), "{error}");
}

#[test]
fn a_cancelled_frame_is_not_missed() {
    let (below, other) = LocalLink::pair(1);
    let (mut link, mut there) = (
        CheckedLink::new(below, "rank 1".to_owned()),
        CheckedLink::new(other, "rank 0".to_owned()),
    );
    let (data, mut into) = ([5u8; 20], [0u8; 20]);
    // SAFETY: the buffers outlive the links.
    unsafe {
        link.post_send(data.as_ptr(), 20);
        link.frame_some();
        link.cancel();
        link.post_send(data[10..].as_ptr(), 10);
        link.post_send(data.as_ptr(), 10);
        there.post_recv(copy(&mut into), 20);
    }
    while link.progress().unwrap() || there.progress().unwrap() {}
    assert_eq!((link.sent(), there.landed(), into), (20, 20, data));
}

#[test]
fn a_cancelled_request_goes_on_where_it_was() {
    let data: Vec<u8> = (0..100).collect();
    let sent = on_the_way(&[&data]);
    for cut in 0..sent.len() {
        let (mut there, below) = LocalLink::pair(ROOM);
        let mut link = CheckedLink::new(below, "rank 0".to_owned());
        let (mut old, mut new) = ([0u8; 100], [0u8; 100]);
        // SAFETY: the buffers outlive the links.
        unsafe {
            link.post_recv(copy(&mut old), 100);
            there.post_send(sent.as_ptr(), cut);
            while there.progress().unwrap() || link.progress().unwrap() {}
            link.cancel();
            link.post_recv(copy(&mut new), 100);
            there.post_send(sent[cut..].as_ptr(), sent.len() - cut);
            while there.progress().unwrap() || link.progress().unwrap() {}
        }
        assert_eq!((old, &new[..]), ([0; 100], &data[..]), "cut at {cut}");
    }
}
