package jwt

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
)

// Kubernetes describes the cluster whose service-account tokens a source accepts.
type Kubernetes struct {
	// Server is the URL of the API server. It is empty if the source does not need it.
	Server string
	// Credential is the path of a file with the bearer token for the API server. The file is read for each request. If
	// the path is empty, or there is no file, requests have no credential.
	Credential string
	// Review asks the API server about each token with a TokenReview. Without it, the token of a deleted pod is accepted
	// until it expires.
	Review bool
}

const (
	maxReviews       = 8               // maximum number of concurrent connections to a server
	reviewRetryAfter = 5 * time.Second // time to wait after a TokenReview failed
	reviewPath       = "/apis/authentication.k8s.io/v1/tokenreviews"
	clusterKeysPath  = "/openid/v1/jwks"
)

// workload names what a service-account token was made for. Pod, podUID and node are empty if the token is not bound
// to a pod or a node.
type workload struct {
	namespace, serviceAccount, pod, podUID, node string
}

const subjectPrefix = "system:serviceaccount:"

// has reports whether sub is the subject of the service account's tokens.
func (w workload) has(sub string) bool {
	valid := func(name string) bool { return name != "" && !strings.Contains(name, ":") }
	return valid(w.namespace) && valid(w.serviceAccount) && sub == subjectPrefix+w.namespace+":"+w.serviceAccount
}

// facts returns the facts that the token has.
func (w workload) facts() map[string]string {
	return map[string]string{
		factNamespace: w.namespace, factServiceAccount: w.serviceAccount, factPod: w.pod, factPodUID: w.podUID,
		factNode: w.node,
	}
}

// workloadOf reads the claim kubernetes.io of a verified token.
func workloadOf(c claims) (workload, error) {
	bound, _ := c.all["kubernetes.io"].(object)
	account, _ := bound["serviceaccount"].(object)
	pod, _ := bound["pod"].(object)
	node, _ := bound["node"].(object)
	var w workload
	valid := true
	for _, member := range []struct {
		of   object
		name string
		to   *string
	}{
		{bound, "namespace", &w.namespace},
		{account, "name", &w.serviceAccount},
		{pod, "name", &w.pod},
		{pod, "uid", &w.podUID},
		{node, "name", &w.node},
	} {
		text, ok := member.of.text(member.name)
		*member.to, valid = text, valid && ok
	}
	if !valid || !w.has(c.subject) {
		return w, pki.Refuse(pki.RuleEvidenceMalformed, "send the projected token of a service account",
			"the subject of the token is not the service account in its claim kubernetes.io")
	}
	return w, nil
}

// cluster sends TokenReviews to an API server.
type cluster struct {
	source     string
	server     string
	credential string
	client     *client
	limits     *reviewLimits
}

// tokenReview is a TokenReview of the API authentication.k8s.io/v1, reduced to the members that are used.
type tokenReview struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Spec       reviewSpec   `json:"spec"`
	Status     reviewStatus `json:"status,omitzero"`
}

type reviewSpec struct {
	Token     string   `json:"token"`
	Audiences []string `json:"audiences"`
}

type reviewStatus struct {
	Authenticated bool       `json:"authenticated"`
	User          reviewUser `json:"user"`
	Audiences     []string   `json:"audiences"`
}

type reviewUser struct {
	Username string              `json:"username"`
	Extra    map[string][]string `json:"extra"`
}

// extra returns the only value of an attribute of the user, and "" if there is none.
func (u reviewUser) extra(name string) string {
	if values := u.Extra["authentication.kubernetes.io/"+name]; len(values) == 1 {
		return values[0]
	}
	return ""
}

// review asks the API server whether it accepts a token for an audience. It returns the workload that the server names.
// If the server has refused the same token a moment ago, or many tokens from the same network, review does not ask it.
func (k *cluster) review(ctx context.Context, t *token, audience string, p ra.Presented) (workload, error) {
	if k.limits.refusedBefore(t, p.At) {
		return workload{}, refuseToken()
	}
	if after := k.limits.begin(p.From, p.At); after > 0 {
		return workload{}, &unavailable{"the cluster of the JWT source " + k.source + " gets too many tokens to review",
			after, nil}
	}
	answer, err := k.send(ctx, tokenReview{
		APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview",
		Spec: reviewSpec{Token: t.raw, Audiences: []string{audience}},
	})
	if ctx.Err() != nil {
		return workload{}, ctx.Err()
	}
	if err != nil {
		return workload{}, &unavailable{"the cluster of the JWT source " + k.source + " does not review tokens",
			reviewRetryAfter, err}
	}
	w, err := answer.Status.workload(t, audience)
	if err != nil {
		k.limits.refused(t, p.From, p.At)
	}
	return w, err
}

func refuseToken() error {
	return pki.Refuse(pki.RuleEvidenceRevoked, "send the current token of a running pod",
		"the cluster does not accept the token")
}

// workload returns the workload that an API server names for a token.
func (status reviewStatus) workload(t *token, audience string) (workload, error) {
	if !status.Authenticated {
		return workload{}, refuseToken()
	}
	// A server that does not support audiences returns none. It accepts tokens for other services.
	if !slices.Contains(status.Audiences, audience) {
		return workload{}, pki.Refuse(pki.RuleEvidenceAudience,
			fmt.Sprintf("request a token for the audience %q", audience),
			"the cluster does not accept the token for this audience")
	}
	namespace, name, _ := strings.Cut(strings.TrimPrefix(status.User.Username, subjectPrefix), ":")
	u := status.User
	w := workload{namespace, name, u.extra("pod-name"), u.extra("pod-uid"), u.extra("node-name")}
	if !w.has(status.User.Username) || !w.has(t.claims.subject) {
		return workload{}, pki.Refuse(pki.RuleEvidenceUntrusted, "send the projected token of a service account",
			"the cluster does not name the service account in the token")
	}
	return w, nil
}

// send sends a TokenReview when a slot is free. Waiting for a slot counts towards the timeout.
func (k *cluster) send(ctx context.Context, request tokenReview) (answer tokenReview, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	select {
	case k.limits.slots <- struct{}{}:
		defer func() { <-k.limits.slots }()
	case <-ctx.Done():
		return answer, fmt.Errorf("%d other TokenReviews are in progress: %w", maxReviews, ctx.Err())
	}
	body, err := json.Marshal(request)
	if err != nil {
		return answer, err
	}
	if body, err = k.client.post(ctx, k.server+reviewPath, k.credential, body); err != nil {
		return answer, err
	}
	if err := decodeJSON(body, &answer); err != nil {
		return answer, err
	}
	if answer.Kind != request.Kind || answer.APIVersion != request.APIVersion {
		return answer, fmt.Errorf("the response is not a TokenReview of %s", request.APIVersion)
	}
	return answer, nil
}
