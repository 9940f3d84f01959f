// Package stepca runs step-ca, another CA, for measurements beside Brevet, with the same key in the same HSM.
package stepca
