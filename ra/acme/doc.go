// Package acme decides about accounts, orders and authorizations of ACME (RFC 8555), and keeps them in a [Store]. It is
// the part of ACME that does not depend on HTTP: JWS, nonces, URLs and the validation of challenges are in server/acme.
//
// [Authority] implements what clients request. A certificate is issued by ra.Registrar.Order alone, which decides with
// the policy like about every other request. The evidence of such a request is an order: [Authenticator] reads the
// order, its account and its valid authorizations from the store, and returns what they prove.
//
// Who a certificate is for follows from the account. The external key that the account was created with names an
// identity, or a rule of the policy that forms an identity from the one name of the order.
//
// An order belongs to one account, and an authorization to one order: a name that was validated for one order is
// validated again for the next. Accounts are in the log, and a replay recreates them. Orders and authorizations are not.
package acme
