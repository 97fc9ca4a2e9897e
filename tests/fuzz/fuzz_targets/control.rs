//! Any bytes, in any pieces, as a question to the control socket: no panic, no line longer than its limit, and the
//! socket still serves the next one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use timeball::daemon::control_socket::ControlSocket;

thread_local! {
    static SOCKET: RefCell<(ControlSocket, PathBuf)> = RefCell::new({
        let path = std::env::temp_dir().join(format!("timeball-fuzz-{}.sock", std::process::id()));
        (ControlSocket::open(&path).expect("a socket in the temporary folder"), path)
    });
}

fuzz_target!(|pieces: Vec<Vec<u8>>| {
    SOCKET.with_borrow_mut(|(socket, path)| {
        let mut stream = UnixStream::connect(path).expect("the socket is there");
        let mut asked = false;
        for piece in pieces {
            // A closed connection is an answer too.
            let _ = stream.write_all(&piece[..piece.len().min(4096)]);
            socket.serve(|question| {
                assert!(!question.contains('\n'));
                // A lossy octet takes three.
                assert!(question.len() <= 3 * 2 * 256, "{}", question.len());
                asked = true;
                b"{}\n".to_vec()
            });
        }
        let mut answer = Vec::new();
        if asked {
            // Who sent more than a line finds the connection reset behind the answer.
            let _ = stream.read_to_end(&mut answer);
            // Who sent more than a question's length is dropped, asked or not.
            assert!(answer.is_empty() || answer == b"{}\n", "{answer:?}");
        }
        drop(stream);
        socket.serve(|_| Vec::new());
    });
});
