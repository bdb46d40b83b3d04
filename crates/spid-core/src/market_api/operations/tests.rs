//! Tests: answers in each form that the vendor's pages show, and those that cannot be read.

use super::*;

const CHINA: tz::Offset = tz::Offset::constant(8);

fn json(text: &str) -> Json {
    Json::read(text.as_bytes()).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn an_operation_is_named_once_and_asks_for_one_that_exists() {
    let names: std::collections::BTreeSet<&str> = ALL.iter().map(|operation| operation.action).collect();
    assert_eq!(names.len(), ALL.len());
    for operation in ALL {
        if let Repeat::AfterAsking(other) = operation.repeat {
            let asked = ALL.iter().find(|operation| operation.action == other).unwrap();
            assert_eq!(asked.repeat, Repeat::Always);
        }
    }
}

#[test]
fn a_call_shows_no_licence_code() {
    let call = ApiCall::activate_license(&Secret::new("FAKECODE0000000000001"), "1234567890");
    assert_eq!(
        format!("{call:?}"),
        r#"ApiCall { action: "ActivateLicense", parameters: ["Identification", "LicenseCode"] }"#
    );
}

#[test]
fn a_licence_is_read_in_each_form_that_the_pages_show() {
    let attributes = r#"[{"Code":"package_version","Value":"yuncode1"},{"Code":"orderBizId","Value":"1001"},
        {"Code":"orderId","Value":"2001, 2002,"},{"Code":"aliUid","Value":"1234567890"},
        {"Code":"expiresTime","Value":"2027-01-01 09:00:00"}]"#;
    for array in [attributes.to_owned(), format!(r#"{{"LicenseAttribute":{attributes}}}"#)] {
        let answer = json(&format!(
            r#"{{"RequestId":"R","License":{{"LicenseCode":"FAKE","LicenseStatus":"INACTIVATED","InstanceId":"1001",
            "ProductCode":"cmgj000001","ProductSkuId":"cmgj000001-prepay","ExpiredTime":"2027-01-01 09:00:00",
            "ExtendInfo":{{"AliUid":1234567890123456789012,"AccountQuantity":3,"Email":"buyer@example.com","Mobile":"1"}},
            "ExtendArray":{array}}}}}"#
        ));
        let read = LicenseRecord::read(&answer, CHINA).unwrap();
        let expected = LicenseRecord {
            status: LicenseStatus::Inactivated,
            instance_id: "1001".into(),
            product_code: "cmgj000001".into(),
            sku: Some("cmgj000001-prepay".into()),
            plan: Some("yuncode1".into()),
            buyer: Some("1234567890123456789012".into()),
            seats: Some("3".into()),
            orders: vec!["2001".into(), "2002".into()],
            expires_at: Some(at("2027-01-01T01:00:00Z")),
        };
        assert_eq!(read, expected);
        assert!(!format!("{read:?}").contains("buyer@example.com"));
    }
}

#[test]
fn a_licence_s_status_and_term_are_never_guessed() {
    let license = |status: &str, time: &str| {
        json(&format!(
            r#"{{"License":{{"LicenseStatus":"{status}","InstanceId":"1","ProductCode":"p","ExpiredTime":"{time}"}}}}"#
        ))
    };
    let status = |word: &str| LicenseRecord::read(&license(word, ""), CHINA).unwrap().status;
    assert_eq!(status("ACTIVATED"), LicenseStatus::Activated);
    assert_eq!(status("EXPIRED"), LicenseStatus::Expired);
    assert_eq!(status("DISCARD"), LicenseStatus::Discarded);
    for odd in ["activated", "ACTIVE", "DISCARDED", "INACTIVE"] {
        assert_eq!(status(odd), LicenseStatus::Unknown, "{odd}");
    }
    let term =
        |time: &str| LicenseRecord::read(&license("ACTIVATED", time), CHINA).map(|read| read.expires_at);
    assert_eq!(term("2016-05-18T14:14Z"), Ok(Some(at("2016-05-18T14:14:00Z"))));
    assert_eq!(term("2016-05-18T14:14:07Z"), Ok(Some(at("2016-05-18T14:14:07Z"))));
    assert_eq!(term("2019-05-25 09:00:00"), Ok(Some(at("2019-05-25T01:00:00Z"))));
    assert_eq!(term(""), Ok(None));
    for odd in ["2019-05-25", "2019-13-25 09:00:00", "soon", "1767258000000", "2019-05-25T09:00:00"] {
        assert_eq!(
            term(odd),
            Err(UnreadableAnswer { action: "DescribeLicense", member: "ExpiredTime" }),
            "{odd}"
        );
    }
    for (member, text) in [
        ("License", r#"{}"#),
        ("LicenseStatus", r#"{"License":{"InstanceId":"1","ProductCode":"p"}}"#),
        ("InstanceId", r#"{"License":{"LicenseStatus":"ACTIVATED","ProductCode":"p"}}"#),
        ("ProductCode", r#"{"License":{"LicenseStatus":"ACTIVATED","InstanceId":"1"}}"#),
    ] {
        assert_eq!(LicenseRecord::read(&json(text), CHINA).unwrap_err().member, member);
    }
}

#[test]
fn an_unreadable_notification_does_not_hide_the_others() {
    let message =
        r#"{\"action\":\"orderPay\",\"aliUid\":\"1234567890\",\"orderId\":2001,\"skuId\":\"yuncode1\"}"#;
    let page = Notifications::read(&json(&format!(
        r#"{{"TotalCount":3,"PageNumber":1,"PageSize":10,"NotificationList":[
        {{"Action":"orderPay","CreateTime":1767258000000,"NotificationRequestId":"n1","Message":"{message}"}},
        {{"Action":"orderPay","NotificationRequestId":"n2","Message":"not json"}},
        {{"Action":"orderPay","NotificationRequestId":"n3","Message":"{{\"deep\":{{}}}}"}}]}}"#
    )))
    .unwrap();
    assert_eq!((page.total, page.unreadable), (3, vec!["n2".to_owned(), "n3".to_owned()]));
    let [first] = page.list.as_slice() else { panic!("{:?}", page.list) };
    assert_eq!(first.created_at, Some(at("2026-01-01T09:00:00Z")));
    assert!(first.parameters.contains(&("orderId".to_owned(), "2001".to_owned())), "{first:?}");
    assert!(Notifications::read(&json(r#"{"NotificationList":[]}"#)).is_err());
    assert!(
        Notifications::read(&json(r#"{"TotalCount":1,"NotificationList":[{"Action":"orderPay"}]}"#)).is_err()
    );
    assert!(Notifications::read(&json(r#"{"TotalCount":1,"NotificationList":{}}"#)).is_err());
}

#[test]
fn instances_and_orders_keep_the_digits_of_their_ids() {
    let instance = MarketInstance::read(&json(
        r#"{"InstanceId":12345678901234567890123,"OrderId":2001,"Status":"OPENED","ProductCode":"cmgj000001",
        "ProductSkuCode":"cmgj000001-prepay","IsTrial":false,"EndOn":1798794000000,
        "ComponentJson":"{\"package_version\":\"yuncode1\"}"}"#,
    ))
    .unwrap();
    assert_eq!(instance.id, "12345678901234567890123");
    assert_eq!((instance.plan.as_deref(), instance.trial), (Some("yuncode1"), Some(false)));
    assert_eq!(instance.ends_at, Some(at("2027-01-01T09:00:00Z")));
    let quoted = json(r#"{"InstanceId":1,"Status":"OPENED","EndOn":"1798794000000"}"#);
    assert_eq!(MarketInstance::read(&quoted).unwrap().ends_at, Some(at("2027-01-01T09:00:00Z")));
    assert!(MarketInstance::read(&json(r#"{"InstanceId":1,"Status":"OPENED","EndOn":"soon"}"#)).is_err());

    for ids in [r#"["1001",1002]"#, r#"{"InstanceId":["1001",1002]}"#] {
        let order = MarketOrder::read(&json(&format!(
            r#"{{"OrderId":2001,"OrderType":"NEW","OrderStatus":"REFUND","PayStatus":"PAID","AliUid":1234567890,"InstanceIds":{ids}}}"#
        )))
        .unwrap();
        assert_eq!((order.status, order.paid), (OrderStatus::Refunded, Some(true)));
        assert_eq!(order.instances, ["1001", "1002"]);
    }
    let strange = MarketOrder::read(&json(r#"{"OrderId":1,"OrderStatus":"REFUNDING"}"#)).unwrap();
    assert_eq!((strange.status, strange.paid), (OrderStatus::Unknown, None));
}

#[test]
fn a_seller_s_list_is_read_whole_or_not_at_all() {
    let page = SellerInstances::read(&json(
        r#"{"Code":"200","Success":true,"Count":1,"Result":[{"InstanceId":1001,"InstanceStatus":"OPENED",
        "UserId":1234567890,"CommodityCode":"sgcmgj0001","CreatedOn":1767258000000}]}"#,
    ))
    .unwrap();
    assert_eq!((page.total, page.list.len(), page.list[0].id.as_str()), (1, 1, "1001"));
    assert!(SellerInstances::read(&json(r#"{"Count":1,"Result":[{"InstanceStatus":"OPENED"}]}"#)).is_err());
    assert!(SellerInstances::read(&json(r#"{"Result":[]}"#)).is_err());
}
