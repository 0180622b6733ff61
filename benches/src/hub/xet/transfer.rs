//! Xorbs: only the signed bytes, only under an unexpired signature.

use std::time::SystemTime;

use hyper::{Response, header::RANGE};

use crate::hub::{
    cdn, query,
    routes::{Answer, Context},
};

pub(super) fn answer(context: &Context, hash: &str) -> Answer {
    let Some(object) = context.shared.catalogue().on_cdn(&format!("/xorbs/default/{hash}")).cloned() else {
        return cdn::access_denied("Access Denied");
    };
    let signed = query::get(&context.query, "X-Xet-Signed-Range");
    let good = context.shared.signer.check(&context.raw_path, &context.query, SystemTime::now()).is_ok();
    let answer = match good && signed.is_some() && signed.as_deref() == context.header(RANGE) {
        true => cdn::object_answer(context, &object, Response::builder()),
        false => cdn::access_denied("Access denied"),
    };
    cdn::count(context, &object, &answer);
    answer
}
