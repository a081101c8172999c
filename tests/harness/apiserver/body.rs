//! Response bodies: a text, or lines as they come; both counted.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::mpsc;

use super::Inner;
use super::fault::Verb;

/// What a line may be in place of bytes: the end of the connection.
#[derive(Debug)]
pub(super) struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut on purpose")
    }
}

impl std::error::Error for Cut {}

/// A response body.
pub(super) struct Answer {
    inner: Arc<Inner>,
    counted: (String, Verb),
    from: From,
}

enum From {
    Text(Option<Bytes>),
    Lines(mpsc::Receiver<Result<Bytes, Cut>>),
}

impl Answer {
    pub(super) fn text(inner: &Arc<Inner>, counted: (String, Verb), text: Vec<u8>) -> Self {
        Self { inner: inner.clone(), counted, from: From::Text(Some(text.into())) }
    }

    pub(super) fn lines(
        inner: &Arc<Inner>,
        counted: (String, Verb),
        lines: mpsc::Receiver<Result<Bytes, Cut>>,
    ) -> Self {
        inner.count(&counted, |c| c.open += 1);
        Self { inner: inner.clone(), counted, from: From::Lines(lines) }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if matches!(self.from, From::Lines(_)) {
            self.inner.count(&self.counted, |c| c.open -= 1);
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let next = match &mut self.from {
            From::Text(text) => text.take().map(Ok),
            From::Lines(lines) => std::task::ready!(lines.poll_recv(cx)),
        };
        if let Some(Ok(bytes)) = &next {
            let sent = bytes.len() as u64;
            self.inner.count(&self.counted, |c| c.bytes += sent);
        }
        Poll::Ready(next.map(|r| r.map(Frame::data)))
    }
}
