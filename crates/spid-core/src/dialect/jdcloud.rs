//! JD Cloud Marketplace: Alibaba's token, with other names.
//!
//! Rules: "Notify-Interface-Standard" in the vendor's documentation repository (github.com/jdcloudcom/en), and
//! its Chinese page (docs.jdcloud.com/en/marketplace/notify-interface-standard), which says more. Where they show
//! no reply, spid sends the reply of the query-token family. `docs/dialects/jdcloud.md` says what is accepted,
//! what is answered, and what is unknown.

use super::GivesUp;
use super::names::Names;
use super::token::{ActionRow, NAMES, ReplyForm, TokenDialect};
use spid_hook::callback::Action;

/// Delivery limit: after `instanceId` 0 the marketplace calls again 200 times.
/// After that an operator must press "Reset Instance" in the seller's console.
const DELIVERY_LIMIT: u32 = 200;

pub(super) static JDCLOUD: TokenDialect = TokenDialect {
    name: "jdcloud",
    delivery_limit: DELIVERY_LIMIT,
    gives_up: |_, _| Some(GivesUp { at: None, then: "the marketplace stops calling" }),
    names: Names { buyer: "jdPin", product: "serviceCode", ..NAMES },
    actions: &[
        ActionRow::new("createInstance", Action::Create, ReplyForm::Instance)
            .with_names(&["expiredOn", "trial"]),
        ActionRow::new("renewInstance", Action::Renew, ReplyForm::SuccessWithApp),
        ActionRow::new("upgradeInstance", Action::Upgrade, ReplyForm::Success),
        // A change of capacity: the same SKU with another `accountNum`.
        ActionRow::new("dilateInstance", Action::Upgrade, ReplyForm::Success),
        ActionRow::new("expiredInstance", Action::Expire, ReplyForm::Success),
        // Only on the Chinese page: sent after a cancellation and its refund.
        ActionRow::new("releaseInstance", Action::Release, ReplyForm::Success),
        ActionRow::new("verify", Action::SignOn, ReplyForm::Page),
    ],
    // `accountNum` is not in this list, because it is a quantity the buyer pays for, and so a billing item.
    system: &[
        "action",
        "appCode",
        "email",
        "instanceId",
        "jdPin",
        "mobile",
        "orderBizId",
        "orderId",
        "serviceCode",
        "skuId",
        "template",
        "tenantCode",
        "timeStamp",
        "userCode",
    ],
    packed: &["extraInfo", "additionInfo"],
    euid: None,
};
