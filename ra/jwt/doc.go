// Package jwt authenticates first certificates by JSON Web Tokens (RFC 7519): those that an OpenID provider, a CI
// system or a Kubernetes cluster gives to its workloads.
//
// An operator configures a [Source] for each issuer: the audience and the algorithms that its tokens must have, where
// its public keys are, and which claims the policy can read. The keys are a fixed JWK Set (RFC 7517), or they are
// fetched as OpenID Connect Discovery 1.0 describes, or from a Kubernetes API server. Fetched keys are refreshed in
// the background. If the issuer cannot be reached, its last keys are used for 24 hours. After that, and before the
// first fetch has succeeded, the result is a temporary error. For Kubernetes, the cluster can be asked about each
// token with a TokenReview, which also refuses the token of a deleted pod.
//
// A token must be one signature in compact serialization (RFC 7515 §7.1). An [Authenticator] refuses:
//
//   - tokens over 16 KiB, encrypted tokens, JSON serializations, and duplicate members in JSON objects
//   - the algorithm none, HMAC, and every algorithm that the source does not list (RFC 8725 §3.1)
//   - headers that bring or locate a key (jwk, jku, x5c, x5u), critical headers (crit), and nested tokens (cty)
//   - tokens of another issuer, for another audience, or signed with a key that the source does not have
//   - tokens without exp or sub, and those that are expired, are not valid yet, or are valid for longer than the
//     source allows
//   - tokens that the cluster does not accept in a TokenReview
//
// A token is a bearer secret: its holder can choose the key to certify. A token with an ID (jti) is used once. Its
// claim has a nonce, which the transaction that records the certificate consumes. Tokens without an ID can be used
// again until they expire, for the same subject.
//
// A token is identified by its issuer and its subject (see [SubjectOf]). Neither is in the log, which records a hash
// of both.
package jwt
