-- Version 4.

-- The seller's application asks which instances a buyer or a tenant has.
CREATE INDEX instance_buyer ON instance (buyer) WHERE buyer IS NOT NULL;
CREATE INDEX instance_tenant ON instance (tenant) WHERE tenant IS NOT NULL;
