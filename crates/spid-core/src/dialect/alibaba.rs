//! Alibaba Cloud Marketplace, both sites.
//!
//! The site for China (help.aliyun.com/zh/marketplace) and the international site
//! (alibabacloud.com/help/en/marketplace) differ. The international site has no `orderPay` and no
//! `refundRenewInstance`. It leaves out `orderId` on upgrade and `isRefund` on release. So parameters that only
//! one site sends are optional here, and a missing `isRefund` is unknown, not "no".
//!
//! `docs/dialects/alibaba.md` says what is accepted, what is answered, and what is unknown.

use jiff::Timestamp;
use serde_json::json;

use super::GivesUp;
use super::token::{ActionRow, NAMES, ReplyForm, TokenDialect};
use spid_hook::callback::Action;
use spid_hook::time::plus_millis;

/// Delivery limit: after a failed answer the marketplace calls again, at most 120 times
/// (help.aliyun.com/document_detail/147358.html).
const DELIVERY_LIMIT: u32 = 120;

pub(super) static ALIBABA: TokenDialect = TokenDialect {
    name: "alibaba",
    delivery_limit: DELIVERY_LIMIT,
    gives_up,
    names: NAMES,
    actions: &[
        // help.aliyun.com/document_detail/147358.html
        ActionRow::new("createInstance", Action::Create, ReplyForm::Instance)
            .with_names(&["trial", "expiredOn"]),
        // help.aliyun.com/zh/marketplace/renewinstance; also sent when the buyer pays arrears
        ActionRow::new("renewInstance", Action::Renew, ReplyForm::SuccessWithApp),
        // help.aliyun.com/zh/marketplace/refundrenewinstance
        ActionRow::new("refundRenewInstance", Action::RefundRenew, ReplyForm::Success),
        // help.aliyun.com/document_detail/147369.html
        ActionRow::new("upgradeInstance", Action::Upgrade, ReplyForm::Success),
        // help.aliyun.com/zh/marketplace/expiredinstance
        ActionRow::new("expiredInstance", Action::Expire, ReplyForm::Success),
        // help.aliyun.com/zh/marketplace/releaseinstance
        ActionRow::new("releaseInstance", Action::Release, ReplyForm::Success),
        // help.aliyun.com/document_detail/147370.html
        ActionRow::new("verify", Action::SignOn, ReplyForm::Page),
        // help.aliyun.com/zh/marketplace/orderpay
        ActionRow::new("orderPay", Action::Payment, ReplyForm::Boolean),
        // help.aliyun.com/document_detail/147373.html
        ActionRow::new("createIdaas", Action::Other, ReplyForm::Free),
    ],
    // No table of the vendor lists `package_version`, `email` and `mobile`, but the marketplace sends them.
    system: &[
        "action",
        "aliUid",
        "ecsInstanceId",
        "email",
        "instanceId",
        "mobile",
        "orderBizId",
        "orderId",
        "package_version",
        "productCode",
        "skuId",
        "template",
        "timeStamp",
    ],
    packed: &[],
    euid: Some(euid),
};

/// Time after which `orderPay` calls end, in milliseconds: the sum of the waits documented on
/// help.aliyun.com/zh/marketplace/orderpay.
/// The vendor does not document the intervals of the other 120 deliveries.
const ORDER_PAY_MS: i64 = (8 * 60 + 38) * 60 * 1000;

#[expect(clippy::unnecessary_wraps, reason = "other marketplaces document no limit")]
fn gives_up(action: Action, first: Timestamp) -> Option<GivesUp> {
    let at = (action == Action::Payment).then(|| plus_millis(first, ORDER_PAY_MS));
    let then =
        "the marketplace stops calling; reset the counter on the seller's production message retry page";
    Some(GivesUp { at, then })
}

// help.aliyun.com/zh/marketplace/partner-driven-large-model-tokens-consumption-buried-point-proposal: five texts,
// all required. The product and the buyer are those of the create.
fn euid(product: &str, buyer: &str) -> String {
    json!({
        "bizType": "B2B",
        "moduleType": "Third-partyproducts",
        "moduleCode": format!("market_{product}"),
        "accountType": "Aliyun",
        "accountId": buyer,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::by_name;
    use super::*;

    #[test]
    fn the_five_texts_of_an_euid() {
        let alibaba = by_name("alibaba").unwrap();
        let text = alibaba.dashscope_euid("cmgj000001", "10001").unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let expected = json!({
            "bizType": "B2B", "moduleType": "Third-partyproducts", "moduleCode": "market_cmgj000001",
            "accountType": "Aliyun", "accountId": "10001"
        });
        assert_eq!(value, expected);
        for (product, buyer) in [("", "10001"), ("cmgj000001", ""), ("p", "1\r\nx: y"), ("品", "1")] {
            assert_eq!(alibaba.dashscope_euid(product, buyer), None, "{product} {buyer}");
        }
        assert_eq!(by_name("jdcloud").unwrap().dashscope_euid("p", "1"), None);
    }
}
